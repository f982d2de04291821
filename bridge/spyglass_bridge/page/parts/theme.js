/** Light, dark, or as the system has it. The choice is kept in this browser. */

const NAME = "spyglass-theme";
export const THEMES = ["system", "light", "dark"];

/** @returns {string} */
export function chosenTheme() {
  try {
    const kept = localStorage.getItem(NAME);
    return THEMES.includes(kept) ? kept : "system";
  } catch {
    return "system";
  }
}

/** @param {string} [theme] one of THEMES; without one what was chosen before */
export function applyTheme(theme = chosenTheme()) {
  if (theme === "system") {
    delete document.documentElement.dataset.theme;
  } else {
    document.documentElement.dataset.theme = theme;
  }
  try {
    localStorage.setItem(NAME, theme);
  } catch {
    // It holds until the page is closed.
  }
}
