// The table of all layers and parameters: sorted, filtered, and shown a hundred rows at a time.
(() => {
  const { KEY, data, element, nameOf, raised, measured, scale, expected, detailOf } = page;
  const CHUNK = 100; // rows shown at first, and at every "show more"
  const FILTERS = ["find", "by-label", "by-kind", "by-verdict"];
  const COLUMNS = [
    ["#", KEY.place, "number"],
    ["Name", KEY.name],
    ["Verdict", KEY.verdict],
    ...(data.labels.length > 1 ? [["Label", KEY.label, "label"]] : []),
    ["Kind", KEY.kind, "kind"],
    ["Judged by", KEY.judged, "judged"],
    ["Exponent", KEY.exponent, "number"],
    ["Expected", KEY.expected, "number"],
    ["Growth, change", KEY.effect, "number"],
    ["Cause", KEY.cause],
  ];
  const CONTENT = {
    [KEY.label]: (row) => [element("bdi", "", data.labels[row[KEY.label]])],
    [KEY.kind]: (row) => [data.kinds[row[KEY.kind]]],
    [KEY.verdict]: (row) => [verdictOf(row)],
    [KEY.exponent]: (row) => [measured(row[KEY.exponent], row[KEY.half])],
    [KEY.expected]: (row) => [expected(row[KEY.expected])],
    [KEY.effect]: (row) => effectOf(row[KEY.effect]),
  };
  const byId = (id) => document.getElementById(id);
  const collator = new Intl.Collator("en", { numeric: true });
  const sorting = { key: KEY.verdict, descending: false };
  let shown = 0;
  let found = [];

  // ---- one row

  function verdictOf(row) {
    const [word, symbol] = data.verdicts[row[KEY.verdict]];
    const mark = element("span", "", symbol);
    mark.setAttribute("aria-hidden", "true");
    return element("span", `verdict ${row[KEY.tone]}`, mark, ` ${word}`);
  }

  function effectOf(effect) {
    return typeof effect === "number" ? [`×${scale(effect)}`] : raised(effect ?? "");
  }

  function rowOf(row) {
    const cells = COLUMNS.map(([, key, className]) => {
      if (key === KEY.name) return nameCell(row);
      return element("td", className, ...(CONTENT[key] ? CONTENT[key](row) : [String(row[key] ?? "")]));
    });
    return element("tr", "", ...cells);
  }

  function nameCell(row) {
    const button = element("button", "name", nameOf(row[KEY.name]));
    button.type = "button";
    button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", () => toggle(button, row));
    const made = element("th", "", button);
    made.scope = "row";
    return made;
  }

  function toggle(button, row) {
    const line = button.closest("tr");
    const open = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!open));
    if (open) {
      line.nextElementSibling.remove();
      return;
    }
    const whole = element("td", "", detailOf(row));
    whole.colSpan = COLUMNS.length;
    line.after(element("tr", "detail", whole));
  }

  // ---- sorting and filtering

  function compare(one, other) {
    const [a, b] = [one[sorting.key], other[sorting.key]];
    const [noA, noB] = [a === null || a === "", b === null || b === ""];
    if (noA || noB) return noA - noB; // what has no value comes last, either way
    const number = typeof a === "number";
    if (number !== (typeof b === "number")) return number ? -1 : 1;
    const order = number ? a - b : collator.compare(a, b);
    return sorting.descending ? -order : order;
  }

  function sort() {
    const { label, place } = KEY;
    data.rows.sort((one, other) => compare(one, other) || one[label] - other[label] || one[place] - other[place]);
    [...byId("columns").children].forEach((th, index) => {
      if (COLUMNS[index][1] !== sorting.key) th.removeAttribute("aria-sort");
      else th.setAttribute("aria-sort", sorting.descending ? "descending" : "ascending");
    });
    update();
  }

  function matches() {
    const [text, label, kind, verdict] = FILTERS.map((id) => byId(id).value);
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    return (row) =>
      (label === "" || row[KEY.label] === Number(label)) &&
      (verdict === "" || row[KEY.verdict] === Number(verdict)) &&
      (kind === "" || (kind === "layer") === (row[KEY.kind] === 0)) &&
      (kind !== "blame" || row[KEY.tone] === "bad") &&
      words.every((word) => row[KEY.name].toLowerCase().includes(word));
  }

  function update() {
    found = data.rows.filter(matches());
    shown = 0;
    byId("body").replaceChildren();
    more();
  }

  function more() {
    const next = found.slice(shown, shown + CHUNK);
    byId("body").append(...next.map(rowOf));
    shown += next.length;
    const written = (count) => count.toLocaleString("en");
    const [some, total] = [found.length < data.rows.length, "layers and parameters"];
    if (!found.length) byId("count").textContent = "No layer or parameter matches.";
    else if (shown < found.length)
      byId("count").textContent =
        `First ${written(shown)} of ${written(found.length)}` +
        (some ? `; ${written(data.rows.length)} ${total} in all` : ` ${total}`);
    else byId("count").textContent = `${some ? `${written(found.length)} of ` : ""}${written(data.rows.length)} ${total}`;
    byId("more").hidden = shown === found.length;
  }

  function head([text, key, className]) {
    const button = element("button", "sort", text);
    button.type = "button";
    if (key === KEY.place) button.setAttribute("aria-label", "# in the data flow");
    button.addEventListener("click", () => {
      sorting.descending = sorting.key === key && !sorting.descending;
      sorting.key = key;
      sort();
    });
    const th = element("th", className, button);
    th.scope = "col";
    th.dataset.title = text; // for print
    return th;
  }

  // ---- to begin with

  byId("columns").append(...COLUMNS.map(head));
  sort();
  for (const id of FILTERS) byId(id).addEventListener("input", update);
  byId("more").addEventListener("click", more);
  byId("clear").addEventListener("click", () => {
    for (const id of FILTERS) byId(id).value = "";
    update();
    byId("find").focus();
  });
  byId("explorer").hidden = false;
  const opened = []; // for the printer
  addEventListener("beforeprint", () => {
    opened.push(...document.querySelectorAll("details:not([open])"));
    for (const details of opened) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of opened.splice(0)) details.open = false;
  });
})();
