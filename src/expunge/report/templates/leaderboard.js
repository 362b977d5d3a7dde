"use strict";
const find = (id) => document.getElementById(id);

// Filters: a row is shown if it has what is chosen, and was told no more than what is ticked.
function filter() {
  const plan = find("plan").value, testbed = find("testbed").value, age = find("age").value, verdict = find("verdict").value;
  const told = new Set([...document.querySelectorAll("[name=told]:checked")].map((box) => box.value));
  const methods = (row) =>
    (!plan || row.dataset.plan === plan) && (!testbed || row.dataset.testbed === testbed) && (!age || row.dataset.age === age) &&
    JSON.parse(row.dataset.told).every((kind) => told.has(kind));
  const claims = (row) =>
    (!plan || row.dataset.plan === plan) && (!testbed || row.dataset.testbed === testbed) && (!verdict || row.dataset.verdict === verdict);
  show("standings", "methods-shown", "rows", methods);
  show("judged", "claims-shown", "claims", claims);
}

function show(table, count, what, wanted) {
  const rows = [...find(table).tBodies[0].rows];
  for (const row of rows) row.hidden = !wanted(row);
  find(count).textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} ${what}.`;
}

// A link to a plan opens it.
function open() {
  const named = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const plan = named && named.closest("details");
  if (plan) { plan.open = true; named.scrollIntoView(); }
}

find("filters").addEventListener("change", filter);
find("filters").addEventListener("submit", (event) => event.preventDefault());
window.addEventListener("hashchange", open);
filter();
open();
