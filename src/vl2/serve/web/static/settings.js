// What a person has set. Kept in the browser; the API key only for as long as the tab is open.

import { byId, make } from "./dom.js";
import { keepChoice, keepInTab, readChoice, readInTab } from "./stored.js";

const NAME = "vl2.settings";
const DEFAULTS = { model: "", system: "", maxTokens: 1024, temperature: 0, wellFormed: false, checkPresence: true };

export const served = { kind: "DeepSeek-VL2" }; // which model the server has
export const settings = { ...DEFAULTS, ...stored(), apiKey: readInTab("vl2.key") ?? "" };

function stored() {
  try {
    return JSON.parse(readChoice(NAME)) ?? {};
  } catch {
    return {};
  }
}

const numberIn = (id, least, most, otherwise) => {
  const value = Number.parseFloat(byId(id).value);
  return Number.isFinite(value) ? Math.min(most, Math.max(least, value)) : otherwise;
};

/** Connect the dialog. Save takes its values over, and `onChange` runs after that; Cancel and Escape leave all as it was. */
export function connectSettings(onChange) {
  const dialog = byId("settings");
  byId("open-settings").addEventListener("click", () => {
    byId("model").value = settings.model;
    byId("system").value = settings.system;
    byId("max-tokens").value = settings.maxTokens;
    byId("temperature").value = settings.temperature;
    byId("well-formed").checked = settings.wellFormed;
    byId("check-presence").checked = settings.checkPresence;
    byId("api-key").value = settings.apiKey;
    dialog.returnValue = ""; // that of the last time would stay
    dialog.showModal();
  });
  byId("cancel-settings").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => {
    if (dialog.returnValue !== "save") return;
    settings.model = byId("model").value || settings.model;
    settings.system = byId("system").value.trim();
    settings.maxTokens = Math.round(numberIn("max-tokens", 1, 100_000, DEFAULTS.maxTokens));
    settings.temperature = numberIn("temperature", 0, 2, DEFAULTS.temperature);
    settings.wellFormed = byId("well-formed").checked;
    settings.checkPresence = byId("check-presence").checked;
    settings.apiKey = byId("api-key").value.trim();
    const { apiKey, ...kept } = settings;
    keepChoice(NAME, JSON.stringify(kept));
    keepInTab("vl2.key", apiKey);
    onChange();
  });
}

/** Offer the served models; a stored one that is gone gives way to the first. */
export function offerModels(models) {
  byId("model").replaceChildren(...models.map(({ id }) => make("option", { value: id, textContent: id })));
  if (!models.some(({ id }) => id === settings.model)) settings.model = models[0].id;
  served.kind = models[0].kind;
  byId("model-name").textContent = settings.model;
  byId("model-name").title = settings.model; // a phone has no room for a long one
}
