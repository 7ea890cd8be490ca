"use strict";
const card = document.getElementById("live");
const said = seconds => {
  for (const [size, unit] of [[86400, "day"], [3600, "hour"], [60, "minute"]])
    if (seconds >= 2 * size) return `${Math.floor(seconds / size)} ${unit}s`;
  return seconds < 1.5 ? "a second" : `${Math.round(seconds)} seconds`;
};
const title = fold => fold.querySelector("summary").textContent;
const tick = () => {
  const now = Date.now() / 1000;
  for (const one of card.querySelectorAll("[data-since]")) one.textContent = said(Math.max(0, now - one.dataset.since));
  document.documentElement.classList.toggle("old", now - card.dataset.written > card.dataset.old);
};
// what the reader has unfolded stays so over a reload; where the browser stands on the page it keeps itself
addEventListener("DOMContentLoaded", () => {
  const folds = [...document.querySelectorAll("details")], key = `folds ${location.pathname}`;
  try {
    const open = JSON.parse(sessionStorage.getItem(key) ?? "null");
    folds.forEach(fold => { if (open) fold.open = open.includes(title(fold)); });
    addEventListener("pagehide", () => {
      sessionStorage.setItem(key, JSON.stringify(folds.filter(fold => fold.open).map(title)));
    });
  } catch { /* a browser that keeps nothing for pages */ }
});
card.classList.add("ticks");
tick();
setInterval(tick, 1000);
