/** Keeps the end of a conversation in sight while it grows, until one scrolls away from it. */

import { useEffect, useLayoutEffect, useRef } from "../ui.js";

/** So near to the end one follows it. */
const NEAR_PX = 48;

/** @returns {number} how far the end is below what can be seen, above the composer */
function hidden(end) {
  const composer = document.querySelector(".composer-frame");
  const edge = composer ? composer.getBoundingClientRect().top : innerHeight;
  return end.getBoundingClientRect().bottom - edge;
}

/**
 * @param {{current: Element|null}} end marks the end
 * @param {string|undefined} id of the last turn
 * @param {string|undefined} status of the last turn
 * @returns {() => void} to be called when it has grown
 */
export function useFollowing(end, id, status) {
  const isFollowing = useRef(false);
  const follow = () => {
    const gap = end.current && isFollowing.current ? hidden(end.current) : 0;
    if (gap > 0) {
      scrollBy({ top: gap, behavior: "instant" });
    }
  };
  useEffect(() => {
    const look = () => {
      isFollowing.current = end.current !== null && hidden(end.current) < NEAR_PX;
    };
    addEventListener("scroll", look, { passive: true });
    return () => removeEventListener("scroll", look);
  }, []);
  useLayoutEffect(() => {
    isFollowing.current ||= status === "running";
    follow();
  }, [id, status]);
  return follow;
}
