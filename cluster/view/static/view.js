// The pages' behaviour: tables that sort and filter. Without it, everything can still be read.
"use strict";

function sortable(table) {
  table.querySelectorAll("th button").forEach((button) => {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const rising = head.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("th").forEach((one) => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      sort(table);
    });
  });
}

function sort(table) {
  const head = table.querySelector("th[aria-sort]");
  if (!head) return;
  const column = head.cellIndex, sign = head.getAttribute("aria-sort") === "ascending" ? 1 : -1;
  const value = (row) => {
    const cell = row.cells[column];
    if (!("value" in cell.dataset)) return cell.textContent.trim().toLowerCase();
    return cell.dataset.value === "None" ? -Infinity : Number(cell.dataset.value);
  };
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => (value(a) < value(b) ? -sign : value(a) > value(b) ? sign : 0));
  table.tBodies[0].append(...rows);
}

function filter() {
  const words = document.getElementById("filter").value.toLowerCase().split(/\s+/);
  for (const row of document.querySelectorAll("#runs tbody tr")) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
}

document.querySelectorAll("#runs").forEach(sortable);
document.getElementById("filter")?.addEventListener("input", filter);
