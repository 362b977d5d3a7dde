"use strict";
const sheet = JSON.parse(document.getElementById("sheet").textContent);
const find = (id) => document.getElementById(id);
const stored = `expunge label ${sheet.sheet}`;

// A browser may refuse to keep anything for a local file; then answers last as long as the page.
function kept() {
  try { return JSON.parse(localStorage.getItem(stored)) ?? {}; } catch { return {}; }
}
const state = {person: "", answers: {}, at: 0, ...kept()};
function keep() {
  try { localStorage.setItem(stored, JSON.stringify(state)); } catch { /* saved to a file all the same */ }
}

function show() {
  const answered = Object.keys(state.answers).length, item = state.at + 1;
  find("image").src = sheet.images[state.at];
  find("image").alt = `Image ${item}, to be labelled`;
  find("progress").value = answered;
  find("place").textContent = `Image ${item} of ${sheet.images.length}; ${answered} answered${answered === sheet.images.length ? ". All done: save your answers." : ""}`;
  for (const button of find("choices").children) button.setAttribute("aria-pressed", String(state.answers[item] === button.value));
  keep();
}

function go(by) {
  state.at = Math.min(Math.max(state.at + by, 0), sheet.images.length - 1);
  show();
}

function answer(choice) {
  state.answers[state.at + 1] = choice;
  go(1);
}

function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type}));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

const quoted = (text) => `"${String(text).replaceAll('"', '""')}"`;
const file = () => `answers-${(state.person || "somebody").replace(/[^\p{L}\p{N}]+/gu, "-")}`;
find("json").addEventListener("click", () => {
  save(`${file()}.json`, "application/json", JSON.stringify({format: 1, sheet: sheet.sheet, person: state.person, answers: state.answers}, null, 1));
});
find("csv").addEventListener("click", () => {
  const rows = Object.entries(state.answers).map(([item, choice]) => [sheet.sheet, state.person, item, choice].map(quoted).join(","));
  save(`${file()}.csv`, "text/csv", ["sheet,person,item,answer", ...rows].join("\r\n") + "\r\n");
});

for (const choice of sheet.choices) {
  const button = Object.assign(document.createElement("button"), {type: "button", value: choice.name});
  button.append(Object.assign(document.createElement("kbd"), {textContent: choice.key}), choice.name);
  button.addEventListener("click", () => answer(choice.name));
  find("choices").append(button);
}
find("image").addEventListener("load", (event) => event.target.classList.toggle("small", event.target.naturalWidth < 256));
find("back").addEventListener("click", () => go(-1));
find("on").addEventListener("click", () => go(1));
find("who").value = state.person;
find("start").addEventListener("click", () => {
  const typed = find("who").value.trim(), before = state.person;
  Object.assign(state, kept()); // a browser may hand over late what an earlier page kept
  if (typed !== before) state.person = typed;
  find("intro").hidden = true;
  find("work").hidden = false;
  show();
});

const keys = new Map(sheet.choices.map((choice) => [choice.key, () => answer(choice.name)]));
keys.set("ArrowLeft", () => go(-1)).set("ArrowRight", () => go(1)).set("b", () => go(-1));
document.addEventListener("keydown", (event) => {
  if (find("work").hidden || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const act = keys.get(event.key);
  if (act) { event.preventDefault(); act(); }
});
