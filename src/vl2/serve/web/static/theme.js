// Dark, light, or as the system has it.

import { byId, toast } from "./dom.js";
import { say } from "./i18n.js";
import { keepChoice, readChoice } from "./stored.js";

const ORDER = ["auto", "light", "dark"];
const WORDS = { auto: "themeAuto", light: "themeLight", dark: "themeDark" };

function apply(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

export function connectTheme() {
  let theme = readChoice("vl2.theme") ?? "auto";
  apply(theme);
  byId("theme").addEventListener("click", () => {
    theme = ORDER[(ORDER.indexOf(theme) + 1) % ORDER.length];
    keepChoice("vl2.theme", theme);
    apply(theme);
    toast(say(WORDS[theme]));
  });
}
