// Small values that the browser keeps: choices for good, others until the tab is closed. A browser that blocks storage
// makes even reading an error, so here reading gives null and writing does nothing.

function attempt(use) {
  try {
    return use();
  } catch {
    return null;
  }
}

export const readChoice = (name) => attempt(() => localStorage.getItem(name));
export const keepChoice = (name, value) => attempt(() => localStorage.setItem(name, value));
export const readInTab = (name) => attempt(() => sessionStorage.getItem(name));
export const keepInTab = (name, value) => attempt(() => sessionStorage.setItem(name, value));
