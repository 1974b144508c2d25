// The table of all calls: columns that come deflated with the page; looked through, sorted and paged here.
"use strict";
(async () => {
  const root = document.getElementById("calls-table");
  if (!root) return;
  const packed = document.getElementById("calls-data").textContent.trim();
  const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
  const inflated = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const columns = JSON.parse(await new Response(inflated).text());
  const names = Object.keys(columns);
  const total = columns[names[0]].length;
  const pageSize = 50;
  const state = { text: "", reasons: false, sort: null, down: false, page: 0, rows: [] };
  const numeric = Object.fromEntries(names.map((name) => [name, columns[name].some((v) => typeof v === "number")]));
  const whole = Object.fromEntries(names.map((name) => [name, columns[name].every((v) => v === null || Number.isInteger(v))]));
  const words = new Set(["begun", "role", "status", "emotion", "trend"]); // of our own: none is long
  const make = (tag, attributes = {}, text = "") => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = text;
    return element;
  };

  const controls = make("div", { class: "pager no-print" });
  const search = make("input", { type: "search", id: "calls-search", placeholder: "call, queue, emotion …" });
  const label = make("label", { for: "calls-search" }, "Look for ");
  const only = make("input", { type: "checkbox", id: "calls-only" });
  const onlyLabel = make("label", { for: "calls-only" }, " only those that need a person");
  controls.append(label, search, only, onlyLabel);
  const scroll = make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "All calls" });
  const table = make("table");
  const head = make("tr");
  const body = make("tbody");
  for (const name of names) {
    const cell = make("th", { scope: "col", class: numeric[name] ? "number" : "" });
    const button = make("button", { type: "button" }, name);
    button.addEventListener("click", () => {
      state.down = state.sort === name ? !state.down : numeric[name];
      state.sort = name;
      update();
    });
    cell.append(button);
    head.append(cell);
  }
  const thead = make("thead");
  thead.append(head);
  table.append(thead, body);
  scroll.append(table);
  const pager = make("div", { class: "pager no-print" });
  const back = make("button", { type: "button" }, "← Back");
  const next = make("button", { type: "button" }, "Next →");
  const where = make("span", { role: "status" });
  pager.append(back, next, where);
  root.replaceChildren(controls, scroll, pager);

  const before = (a, b) => (a === b ? 0 : a === null || a === "" ? 1 : b === null || b === "" ? -1 : a < b ? -1 : 1);
  const update = () => {
    const text = state.text.toLowerCase();
    state.rows = [];
    for (let row = 0; row < total; row++) {
      if (state.reasons && !columns["needs a person"][row]) continue;
      if (text && !names.some((name) => String(columns[name][row] ?? "").toLowerCase().includes(text))) continue;
      state.rows.push(row);
    }
    if (state.sort) {
      const values = columns[state.sort];
      const missing = (v) => v === null || v === "";
      state.rows.sort((a, b) => {
        const order = before(values[a], values[b]);
        return state.down && !missing(values[a]) && !missing(values[b]) ? -order : order;
      });
    }
    [...head.children].forEach((cell, number) => {
      if (names[number] === state.sort) cell.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    });
    state.page = 0;
    show();
  };
  const show = () => {
    const first = state.page * pageSize;
    const shown = state.rows.slice(first, first + pageSize);
    body.replaceChildren(...shown.map((row) => {
      const line = make("tr");
      for (const name of names) {
        const value = columns[name][row];
        const text = value === null ? "" : typeof value === "number" && !whole[name] ? value.toFixed(2) : String(value);
        line.append(make("td", { class: numeric[name] ? "number" : words.has(name) ? "short" : "name" }, text));
      }
      return line;
    }));
    back.disabled = state.page === 0;
    next.disabled = first + pageSize >= state.rows.length;
    where.textContent = state.rows.length
      ? `${(first + 1).toLocaleString("en")} to ${(first + shown.length).toLocaleString("en")} of ${state.rows.length.toLocaleString("en")} rows`
      : "no rows";
  };
  let waiting = 0;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { state.text = search.value; update(); }, 200);
  });
  only.addEventListener("change", () => { state.reasons = only.checked; update(); });
  back.addEventListener("click", () => { state.page--; show(); });
  next.addEventListener("click", () => { state.page++; show(); });
  update();
})();
