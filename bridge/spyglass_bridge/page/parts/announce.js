/** Says something to screen readers without moving the focus. */

/** @param {string} text */
export function announce(text) {
  const region = document.getElementById("announcements");
  if (region) {
    region.textContent = "";
    region.textContent = text;
  }
}
