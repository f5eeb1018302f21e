// The language of the page, English or Chinese. Elements name the words that they show in data-i18n.

import { keepChoice, readChoice } from "./stored.js";
import { EN } from "./words_en.js";
import { ZH } from "./words_zh.js";

const WORDS = { en: EN, zh: ZH };

let language = "en";

/** Choose a language: the stored one, else the browser's. */
export function initialLanguage() {
  const stored = readChoice("vl2.language");
  if (stored in WORDS) return stored;
  return navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
}

export function currentLanguage() {
  return language;
}

/** Return the words of a key. {0} stands for the first value; {0|tile|tiles} for it and the form that goes with it. */
export function say(key, ...values) {
  const text = WORDS[language][key] ?? WORDS.en[key];
  if (text === undefined) throw new Error(`no words for ${key}`);
  return text.replace(/\{(\d)(?:\|([^|}]*)\|([^}]*))?\}/g, (_, index, one, other) => {
    const value = values[index];
    return one === undefined ? value : `${value} ${value === 1 ? one : other}`;
  });
}

/** Show the page in a language that a person chose, now and when it is opened again. */
export function chooseLanguage(name) {
  keepChoice("vl2.language", name);
  setLanguage(name);
}

/** Show the page in a language. */
export function setLanguage(name) {
  language = name;
  document.documentElement.lang = name === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-i18n]")) element.textContent = say(element.dataset.i18n);
  for (const element of document.querySelectorAll("[data-i18n-title]")) {
    element.title = say(element.dataset.i18nTitle);
    element.setAttribute("aria-label", element.title);
  }
  for (const element of document.querySelectorAll("[data-i18n-placeholder]")) {
    element.placeholder = say(element.dataset.i18nPlaceholder);
  }
  for (const element of document.querySelectorAll("[data-i18n-label]")) {
    element.setAttribute("aria-label", say(element.dataset.i18nLabel));
  }
}
