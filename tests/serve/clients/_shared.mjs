import { readFileSync } from "node:fs";

export const RECORDER = process.argv[2];
export const API = `${RECORDER}/v1`;
export const PICTURE_DATA =
  "iVBORw0KGgoAAAANSUhEUgAAADAAAAAgCAIAAADbtmxLAAAAgklEQVR42u2WwQ7AIAhDtfH/f9ldd9hha0uGSXtUkScoMvfeo5MwmilAAVK1GKM5HwZNr3UZUO5TMhY8NJ/WeIDee9KYUOJDYELV7izTcXVIuRCUbSp1gAL0N5DyWVK2J6aMCxIbWpTsLiQafh9ajwbzueWOcTG5aNRTW32nUgeoRBc17iFDGK+9LAAAAABJRU5ErkJggg==";
export const PICTURE = `data:image/png;base64,${PICTURE_DATA}`;
export const TOOL = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Tell the weather of a city.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};
export const versionOf = (name) => JSON.parse(readFileSync(`node_modules/${name}/package.json`)).version;
export async function scenario(name, work) {
  await fetch(`${RECORDER}/scenario`, { method: "POST", body: name });
  try {
    console.log(`${name}: ${JSON.stringify(await work())?.slice(0, 160)}`);
  } catch (error) {
    console.log(`${name} FAILED: ${error?.name}: ${String(error?.message ?? error).slice(0, 300)}`);
  }
}
