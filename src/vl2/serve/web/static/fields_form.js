// The form of an extraction: a list of fields, or a JSON schema. What was typed last is there again the next time.

import { byId, make } from "./dom.js";
import { questionOf, schemaOf } from "./extraction.js";
import { say } from "./i18n.js";
import { keepChoice, readChoice } from "./stored.js";

const NAME = "vl2.fields";
const TYPES = ["text", "number", "flag", "list"];
const MAX_FIELDS = 50;

export class FieldsForm {
  /** `changed()` runs when a person changes something. */
  constructor({ changed }) {
    const { fields, schema, isSchema } = stored();
    this.fields = fields;
    this.isSchema = isSchema;
    byId("schema").value = schema;
    byId("add-field").addEventListener("click", () => {
      this.fields.push({ name: "", type: "text" });
      this.showFields();
      this.focus(this.fields.length - 1);
    });
    byId("toggle-schema").addEventListener("click", () => {
      this.isSchema = !this.isSchema;
      if (this.isSchema && !byId("schema").value.trim()) byId("schema").value = JSON.stringify(schemaOf(this.named()), null, 2);
      this.show(true);
      this.focus();
    });
    byId("fields-form").addEventListener("input", () => {
      this.keep();
      changed();
    });
    byId("schema").addEventListener("keydown", (event) => event.key === "Enter" && event.stopPropagation());
  }

  show(isShown) {
    byId("fields-form").hidden = !isShown;
    if (!isShown) return;
    byId("fields").hidden = this.isSchema;
    byId("add-field").hidden = this.isSchema || this.fields.length >= MAX_FIELDS;
    byId("schema").hidden = !this.isSchema;
    byId("toggle-schema").textContent = say(this.isSchema ? "asFields" : "asSchema");
    this.showFields();
  }

  showFields() {
    if (!this.fields.length) this.fields.push({ name: "", type: "text" });
    byId("fields").replaceChildren(...this.fields.map((field, index) => this.row(field, index)));
  }

  row(field, index) {
    const name = make("input", {
      value: field.name,
      maxLength: 100,
      placeholder: say("fieldExample"),
      attributes: { "aria-label": say("fieldName", index + 1) },
    });
    name.addEventListener("input", () => (field.name = name.value.trim()));
    const type = make(
      "select",
      { attributes: { "aria-label": say("fieldType", index + 1) } },
      ...TYPES.map((value) => make("option", { value, textContent: say(`type${value[0].toUpperCase()}${value.slice(1)}`) })),
    );
    type.value = field.type;
    type.addEventListener("input", () => (field.type = type.value));
    const remove = make("button", {
      type: "button",
      className: "ghost icon",
      textContent: "×",
      title: say("removeField", index + 1),
      attributes: { "aria-label": say("removeField", index + 1) },
    });
    remove.addEventListener("click", () => {
      this.fields.splice(index, 1);
      this.keep();
      this.showFields();
      this.focus(Math.max(0, index - 1));
    });
    return make("li", { className: "field" }, name, type, remove);
  }

  focus(index = 0) {
    if (this.isSchema) byId("schema").focus();
    else byId("fields").querySelectorAll("input")[index]?.focus();
  }

  keep() {
    keepChoice(NAME, JSON.stringify({ fields: this.fields, schema: byId("schema").value, isSchema: this.isSchema }));
  }

  named() {
    return this.fields.filter(({ name }) => name);
  }

  /** Return the schema that is typed, or null if it is none. */
  schema() {
    if (!this.isSchema) return schemaOf(this.named());
    try {
      const schema = JSON.parse(byId("schema").value);
      return schema?.type === "object" ? schema : null;
    } catch {
      return null;
    }
  }

  /** Return the words for what is missing, or null. */
  missing() {
    if (this.isSchema) return this.schema() ? null : "needSchema";
    const names = this.named().map(({ name }) => name);
    if (!names.length) return "needField";
    return new Set(names).size < names.length ? "fieldTwice" : null;
  }

  /** Return the question, as makeQuestion does. */
  question(pictures) {
    const schema = this.schema();
    const names = Object.keys(schema.properties ?? {});
    const query = names.slice(0, 8).join(", ") + (names.length > 8 ? " …" : "");
    return { shown: say("saidExtract", query), prompt: questionOf(schema), pictures, task: "extract", query, schema };
  }
}

function stored() {
  const empty = { fields: [{ name: "", type: "text" }], schema: "", isSchema: false };
  try {
    const { fields, schema, isSchema } = JSON.parse(readChoice(NAME)) ?? empty;
    const known = fields.filter(({ name, type }) => typeof name === "string" && TYPES.includes(type)).slice(0, MAX_FIELDS);
    return { fields: known, schema: String(schema), isSchema: isSchema === true };
  } catch {
    return empty;
  }
}
