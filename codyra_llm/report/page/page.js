"use strict";
// What a reader does with a page that is complete without it: theme, switch, cells, sorting, downloads, search.
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const make = (name, text, parent) => {
    const element = document.createElement(name);
    element.textContent = text;
    parent.append(element);
    return element;
  };
  const kept = {
    get: () => { try { return localStorage.getItem("theme"); } catch { return null; } },
    set: (value) => { try { localStorage.setItem("theme", value); } catch { /* a file may not have a storage */ } },
  };

  const root = document.documentElement;
  const themes = ["auto", "dark", "light"];
  const show = (theme) => theme === "auto" ? delete root.dataset.theme : (root.dataset.theme = theme);
  const button = make("button", "", document.querySelector("nav"));
  let theme = themes.includes(kept.get()) ? kept.get() : "auto";
  const say = () => { show(theme); button.textContent = `Theme: ${theme}`; };
  button.type = "button";
  button.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    kept.set(theme);
    say();
  });
  say();

  const variants = all(".variant");
  const choose = (name) => variants.forEach((each) => { each.hidden = each.dataset.variant !== name; });
  all('input[name="variant"]').forEach((input) => {
    input.addEventListener("change", () => choose(input.value));
    if (input.checked) choose(input.value);
  });

  all(".heat").forEach((table) => {
    const rows = all("tbody tr", table).map((row) => all("td", row));
    const said = document.querySelector(".said");
    const at = (cell) => rows.reduce((found, row, i) => row.includes(cell) ? [i, row.indexOf(cell)] : found, [0, 0]);
    rows.flat().forEach((cell, number) => { cell.tabIndex = number ? -1 : 0; });
    const tell = (event) => { if (event.target.title) said.textContent = event.target.title; };
    table.addEventListener("focusin", tell);
    table.addEventListener("mouseover", tell);
    table.addEventListener("keydown", (event) => {
      const step = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[event.key];
      if (!step) return;
      event.preventDefault();
      const [row, column] = at(event.target);
      const next = rows[row + step[0]]?.[column + step[1]];
      if (!next) return;
      event.target.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  });

  const numeric = (text) => {
    const found = text.replace("−", "-").replaceAll(",", "").match(/^[+-]?\d+(\.\d+)?(e[+-]?\d+)?/i);
    return found ? Number(found[0]) : null;
  };
  const sortBy = (table, column, head) => {
    const down = head.getAttribute("aria-sort") !== "descending";
    all("thead th", table).forEach((each) => each.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const text = (row) => row.cells[column].textContent.trim();
    const order = (a, b) => {
      const [x, y] = [numeric(text(a)), numeric(text(b))];
      if (x === null && y === null) return text(a).localeCompare(text(b)) * (down ? 1 : -1);
      if (x === null || y === null) return x === null ? 1 : -1;
      return down ? y - x : x - y;
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
  };
  const cells = (table) => [...table.rows].map((row) => [...row.cells].map((cell) => cell.textContent.trim()));
  const asCsv = (rows) => rows.map((row) => row.map((cell) => `"${cell.replaceAll('"', '""')}"`).join(",")).join("\n");
  const tex = (cell) => cell.replace(/[\\{}$&#%_^~]/g, (mark) =>
    ({ "\\": "\\textbackslash{}", "^": "\\^{}", "~": "\\~{}" })[mark] ?? `\\${mark}`).replaceAll("−", "$-$");
  const asLatex = (rows) => [
    `\\begin{tabular}{l${"r".repeat(rows[0].length - 1)}}`, "\\toprule",
    ...rows.map((row, number) => `${row.map(tex).join(" & ")} \\\\${number ? "" : " \\midrule"}`),
    "\\bottomrule", "\\end{tabular}",
  ].join("\n");
  const save = (name, text) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text + "\n"], { type: "text/plain" }));
    link.download = name.replace(/[^\w.-]+/g, "_");
    link.click();
    URL.revokeObjectURL(link.href);
  };
  all("table.data").forEach((table) => {
    all("thead th", table).forEach((head, column) => {
      const text = head.textContent;
      head.textContent = "";
      make("button", text, head).addEventListener("click", () => sortBy(table, column, head));
    });
    const bar = document.createElement("div");
    bar.className = "downloads";
    table.parentElement.after(bar);
    const name = table.dataset.name;
    make("button", "CSV", bar).addEventListener("click", () => save(`${name}.csv`, asCsv(cells(table))));
    make("button", "LaTeX", bar).addEventListener("click", () => save(`${name}.tex`, asLatex(cells(table))));
    all("button", bar).forEach((each) => each.setAttribute("aria-label", `${each.textContent}: ${name}`));
  });

  const form = document.querySelector(".search");
  const search = () => {
    const { words, task, kind } = form.elements;
    const wanted = words.value.toLocaleLowerCase().split(/\s+/);
    let count = 0;
    all(".answer").forEach((each) => {
      const text = each.textContent.toLocaleLowerCase();
      const fits = (!task.value || each.dataset.task === task.value) && (!kind.value || each.dataset.kind === kind.value);
      each.hidden = !fits || !wanted.every((word) => text.includes(word));
      count += !each.hidden;
    });
    form.querySelector("output").textContent = `${count} shown`;
  };
  form?.addEventListener("input", search);
  form?.addEventListener("submit", (event) => event.preventDefault());
})();
