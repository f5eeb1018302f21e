// Dark, light, or as the system has it.

import { byId, toast } from "./dom.js";
import { say } from "./i18n.js";

const ORDER = ["auto", "light", "dark"];
const WORDS = { auto: "themeAuto", light: "themeLight", dark: "themeDark" };

function apply(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

export function connectTheme() {
  let theme = localStorage.getItem("vl2.theme") ?? "auto";
  apply(theme);
  byId("theme").addEventListener("click", () => {
    theme = ORDER[(ORDER.indexOf(theme) + 1) % ORDER.length];
    localStorage.setItem("vl2.theme", theme);
    apply(theme);
    toast(say(WORDS[theme]));
  });
}
