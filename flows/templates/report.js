"use strict";
// Clicking a column heading sorts the table: numbers in descending, text in ascending order, missing values last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const isNumber = head.dataset.kind === "number", before = head.getAttribute("aria-sort");
    const sign = (before ? before === "descending" : !isNumber) ? 1 : -1;
    const order = (a, b) => {
      const [x, y] = [value(a, column), value(b, column)];
      if (isNumber) return x === "" || y === "" ? (x === "") - (y === "") : sign * (x - y);
      return sign * x.localeCompare(y, "en", {numeric: true});
    };
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    body.append(...[...body.rows].sort(order));
  }));
}
