// Extraction: the schema of what is wanted, the question for it, the values in the answer, and where they stand. The
// question and the order of attempts are those of vl2.extract; a test compares the questions.

const MAX_NAMED_FIELDS = 100; // that the question names
const MAX_DEPTH = 3;
const MAX_LOCATED = 40; // requests for the places of values

/** Return the schema of a list of fields: [{name, type}]. What a document does not have is null. */
export function schemaOf(fields) {
  const types = {
    text: { type: ["string", "null"] },
    number: { type: ["number", "null"] },
    flag: { type: ["boolean", "null"] },
    list: { type: "array", items: { type: "string" } },
  };
  const names = fields.map(({ name }) => name);
  const properties = Object.fromEntries(fields.map(({ name, type }) => [name, types[type]]));
  return { type: "object", properties, required: names };
}

/** Return the field `response_format` of a request. Objects get no properties beside those that the schema names. */
export const responseFormat = (schema) => ({ type: "json_schema", json_schema: { name: "extraction", schema: closed(schema) } });

function closed(schema) {
  if (Array.isArray(schema)) return schema.map(closed);
  if (!isObject(schema)) return schema;
  // The parts of allOf describe one object together, so none of them may forbid what another names.
  const made = Object.fromEntries(Object.entries(schema).map(([key, part]) => [key, key === "allOf" ? part : closed(part)]));
  if (isObject(schema.properties) && !("allOf" in schema) && "type" in schema) made.additionalProperties ??= false;
  return made;
}

/** Return the question that asks for an object, with the names and descriptions of its fields. */
export function questionOf(schema) {
  const about = schema.description || schema.title;
  const head = `Extract this from the document as JSON${about ? ` (${about})` : ""}:`;
  return [head, ...fieldLines(schema, schema).slice(0, MAX_NAMED_FIELDS)].join("\n");
}

function fieldLines(schema, root, indent = "", depth = 0) {
  const { properties } = resolved(schema, root) ?? {};
  if (depth > MAX_DEPTH || !isObject(properties)) return [];
  return Object.entries(properties).flatMap(([name, entry]) => {
    const part = resolved(entry, root) ?? {};
    const line = part.description ? `${indent}- ${name}: ${part.description}` : `${indent}- ${name}`;
    return [line, ...fieldLines(part.type === "array" ? part.items : part, root, `${indent}  `, depth + 1)];
  });
}

/** Follow a reference within the schema, once. */
function resolved(schema, root) {
  if (typeof schema?.$ref !== "string") return isObject(schema) ? schema : undefined;
  let found = root;
  for (const key of schema.$ref.replace(/^#\//, "").split("/")) found = isObject(found) ? found[key] : undefined;
  return isObject(found) ? found : undefined;
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/** Return the object that an answer holds, or null if it holds none or was cut off. */
export function readObject(text) {
  try {
    const value = JSON.parse(text);
    return isObject(value) ? value : null;
  } catch {
    return null;
  }
}

/** Return all values with their paths, such as "items/0/price", in order: [{path, value}]. */
export function leaves(value, path = "") {
  if (typeof value === "object" && value !== null) {
    const inside = Object.entries(value).flatMap(([key, part]) => leaves(part, path ? `${path}/${key}` : key));
    if (inside.length || !path) return inside;
    return [{ path, value: null }]; // an empty list
  }
  return [{ path, value }];
}

/** Return what to ask for the places of the values of an answer, page by page: [{path, page, query}]. */
export function placeQuestions(text, numPages) {
  const values = leaves(readObject(text) ?? {}).filter(({ value }) => typeof value === "number" || (typeof value === "string" && value.trim()));
  return values
    .flatMap(({ path, value }) =>
      Array.from({ length: numPages }, (_, page) => ({ path, page, query: `the text ${quoted(printed(value))}` })),
    )
    .slice(0, MAX_LOCATED);
}

/** Return the likeliest form of a value on a page: 1234.5 as 1,234.50. */
function printed(value) {
  if (typeof value === "string") return value.trim().replace(/\s+/g, " ");
  const digits = Number.isInteger(value) ? 0 : 2;
  return value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** Return a text in quotation marks, as Python's repr writes it. */
function quoted(text) {
  const escaped = text.replaceAll("\\", "\\\\");
  return text.includes("'") && !text.includes('"') ? `"${escaped}"` : `'${escaped.replaceAll("'", "\\'")}'`;
}

/** Return a table of one row as CSV: a column for each value, such as "buyer.name"; lists are JSON texts. */
export function toCsv(name, value) {
  const row = { id: name, ...flat(value) };
  const cell = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const line = (cells) => `${cells.map((one) => cell(one === null ? "" : String(one))).join(",")}\n`;
  return line(Object.keys(row)) + line(Object.values(row));
}

function flat(value, prefix = "") {
  return Object.fromEntries(
    Object.entries(value).flatMap(([key, part]) => {
      if (isObject(part)) return Object.entries(flat(part, `${prefix}${key}.`));
      return [[`${prefix}${key}`, Array.isArray(part) ? JSON.stringify(part) : part]];
    }),
  );
}
