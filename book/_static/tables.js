// Tables of results: a click on a column's head sorts by it, a field above a long table searches. Without scripts they are plain.
document.addEventListener("DOMContentLoaded", () => {
  const number = text => (text === "–" || text === "" ? NaN : Number(text.replace("−", "-").replace(/,(?=\d{3})/g, "").replace(/[^\d.eE+-].*$/, "")));
  for (const table of document.querySelectorAll("table.dataframe")) {
    for (const cell of table.querySelectorAll("td")) {
      if (/^[+−-]?[\d.,]+ \[[^\]]*\]/.test(cell.textContent.trim())) cell.classList.add("interval");
    }
    const body = table.tBodies[0], heads = [...table.querySelectorAll("thead tr:last-child th")];
    if (!body || body.rows.length < 4) continue;
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.append(...head.childNodes);
      button.title = "Sort by this column";
      button.className = "sort";
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach(other => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const key = row => row.cells[column].textContent.trim();
        const rows = [...body.rows], numeric = rows.filter(row => !isNaN(number(key(row)))).length > rows.length / 2;
        const order = numeric
          ? (a, b) => (isNaN(number(key(a))) - isNaN(number(key(b)))) || (up ? 1 : -1) * (number(key(a)) - number(key(b)))
          : (a, b) => (up ? 1 : -1) * key(a).localeCompare(key(b));
        body.append(...rows.sort(order));
      });
    });
    if (body.rows.length < 12) continue;
    const field = document.createElement("input");
    field.type = "search";
    field.className = "search";
    field.placeholder = "Search the table";
    field.setAttribute("aria-label", "Search the table");
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/);
      for (const row of body.rows) row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
    });
    table.parentElement.insertBefore(field, table);
  }
});
// What is folded on the screen is printed, but for code.
let unfolded = [];
addEventListener("beforeprint", () => {
  const folds = [...document.querySelectorAll(".bd-content details:not([open])")];
  unfolded = folds.filter(fold => !fold.classList.contains("hide") || fold.querySelector(".cell_output"));
  for (const fold of unfolded) fold.open = true;
});
addEventListener("afterprint", () => {
  for (const fold of unfolded) fold.open = false;
});
// A link to a fold opens it: one click from the front page to the evidence of a claim.
const openTarget = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const fold = target && target.closest("details");
  if (fold) {
    fold.open = true;
    fold.scrollIntoView();
  }
};
addEventListener("DOMContentLoaded", openTarget);
addEventListener("hashchange", openTarget);
