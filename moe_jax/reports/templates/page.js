"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const make = (tag, text, name) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  return node;
};

/* theme: auto -> light -> dark */
const theme = document.getElementById("theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const root = document.documentElement, order = ["auto", "light", "dark"];
  const next = order[(order.indexOf(root.dataset.theme || "auto") + 1) % 3];
  if (next === "auto") delete root.dataset.theme; else root.dataset.theme = next;
  theme.textContent = "theme: " + next;
});

/* sorting: a click sorts, a second one turns the order; equal rows keep theirs */
for (const button of all("th button")) button.addEventListener("click", () => {
  const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
  const first = head.classList.contains("num") ? "descending" : "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = head.getAttribute("aria-sort") === first ? other : first;
  const sign = order === "ascending" ? 1 : -1;
  const value = (row) => {
    const raw = row.cells[head.cellIndex].dataset.v;
    return head.classList.contains("num") ? (raw === "" ? NaN : Number(raw)) : raw;
  };
  const rows = [...body.rows].map((row) => ({ row, value: value(row) }));
  rows.sort((a, b) => {
    if (typeof a.value === "string") return sign * a.value.localeCompare(b.value);
    if (isNaN(a.value) || isNaN(b.value)) return isNaN(a.value) - isNaN(b.value);
    return sign * (a.value - b.value);
  });
  for (const cell of head.parentNode.cells) cell.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  body.append(...rows.map((item) => item.row));
});

/* texts: what the colours mean, and how they are drawn */
const texts = document.querySelector(".texts");
const names = {}, labels = {};
for (const key of all(".key")) {
  const name = key.querySelector(".name").textContent;
  if (key.dataset.factor !== undefined) names[key.dataset.factor] = name;
  labels[key.dataset.factor ?? key.dataset.label] = name;
}
let only = null;
const dim = () => {
  const field = texts.classList.contains("by-gold") ? "g" : "f";
  for (const word of all(".w", texts)) word.classList.toggle("dim", only !== null && word.dataset[field] !== only);
  for (const gap of all(".s", texts)) gap.classList.toggle("dim", only !== null && !gap.classList.contains(field + only));
};
for (const key of all(".key")) key.addEventListener("click", () => {
  const mine = key.dataset.factor ?? key.dataset.label;
  only = only === mine ? null : mine;
  for (const other of all(".key")) {
    const index = other.dataset.factor ?? other.dataset.label;
    other.setAttribute("aria-pressed", String(index === only));
  }
  dim();
});
const controls = document.querySelector(".controls");
if (controls) controls.hidden = false;
for (const input of all(".controls input")) input.addEventListener("change", () => {
  if (input.type === "radio") {
    texts.classList.toggle("by-gold", input.value === "gold");
    texts.classList.toggle("by-factor", input.value === "factor");
    dim();
  } else texts.classList.toggle(input.value, input.checked);
});

/* the tooltip: probability of each factor for the word under the pointer */
const tip = document.getElementById("tip"), SHOWN = 14;
let here = null;
const hide = () => { tip.hidden = true; if (here) here.classList.remove("here"); here = null; };
const show = (word) => {
  hide();
  here = word;
  word.classList.add("here");
  const probs = word.dataset.p.split(" ").map(Number);
  const order = probs.map((_, i) => i).sort((a, b) => probs[b] - probs[a] || a - b);
  tip.replaceChildren(make("strong", word.textContent));
  const gold = word.dataset.g;
  if (gold !== undefined) tip.append(make("p", "gold label: " + labels[gold]));
  const row = (number, name, share) => {
    const line = make("div", undefined, "row k" + number), bar = make("i");
    bar.style.width = share / 10 + "%";
    line.append(make("b", number, "chip"), make("span", name), bar, make("em", (share / 10).toFixed(1) + "%"));
    tip.append(line);
  };
  for (const i of order.slice(0, SHOWN)) row(String(i), names[i] ?? "factor " + i, probs[i]);
  const rest = order.slice(SHOWN);
  if (rest.length) row("", rest.length + " others", rest.reduce((sum, i) => sum + probs[i], 0));
  tip.hidden = false;
  const box = word.getClientRects()[0] || word.getBoundingClientRect(), size = tip.getBoundingClientRect();
  const below = box.bottom + 8 + size.height <= innerHeight;
  tip.style.left = Math.max(8, Math.min(box.left, innerWidth - size.width - 8)) + "px";
  tip.style.top = Math.max(8, below ? box.bottom + 8 : box.top - size.height - 8) + "px";
};
if (texts) {
  texts.addEventListener("pointerover", (event) => {
    const word = event.target.closest(".w");
    if (word) show(word); else hide();
  });
  texts.addEventListener("pointerleave", hide);
  texts.addEventListener("focusout", hide);
  texts.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") hide();
    if (!step || !event.target.classList.contains("text")) return;
    const words = all(".w", event.target);
    const next = here && event.target.contains(here) ? words.indexOf(here) + step : step > 0 ? 0 : words.length - 1;
    if (words[next]) { words[next].scrollIntoView({ block: "nearest" }); show(words[next]); event.preventDefault(); }
  });
  addEventListener("scroll", () => { if (here && document.activeElement !== here.parentNode) hide(); }, { passive: true });
}
