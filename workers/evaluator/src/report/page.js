"use strict";
// Draws the curves and the episode browser from the embedded JSON. Data becomes text nodes and attributes of
// elements made here; it is never parsed as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const at = (id) => document.getElementById(id);

  function make(space, tag, attributes, children) {
    const node = space ? document.createElementNS(space, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    for (const child of children.flat()) {
      if (child !== null && child !== undefined && child !== false) node.append(child);
    }
    return node;
  }
  const h = (tag, attributes, ...children) => make(null, tag, attributes, children);
  const s = (tag, attributes, ...children) => make(SVG, tag, attributes, children);

  // ---- learning curves -------------------------------------------------------------------------------
  const FIGURES = [
    ["gain", "Gain beyond RAG", "signed"],
    ["accuracy", "Accuracy of the searcher", ""],
    ["reward", "Reward", "signed"],
    ["entropy", "Entropy per token, nats", ""],
    ["gradNorm", "Gradient norm", ""],
    ["mismatchKl", "KL, rollout to trainer", ""],
    ["searches", "Searches per episode", ""],
    ["invalidTurns", "Unreadable turns", ""],
  ];
  const number = (value, signed, digits = 3) => {
    const size = Math.abs(value);
    const text = size >= 10 ** digits ? Math.round(size).toLocaleString("en") : size !== 0 && size < 0.001 ? size.toExponential(digits - 2)
      : size.toPrecision(digits).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
    return (value < 0 ? "−" : signed && size > 0 ? "+" : "") + text;
  };

  function chart(key, title, signed) {
    const lines = [];
    data.curves.forEach((curve, colour) => {
      if (curve.train[key]) lines.push({ points: curve.train[key], colour: colour % 4, held: false, name: curve.name });
      if (curve.probe[key]) lines.push({ points: curve.probe[key], colour: colour % 4, held: true, name: curve.name + ", held-out" });
    });
    if (!lines.length) return null;
    const all = lines.flatMap((line) => line.points);
    const steps = all.map((point) => point[0]);
    const values = all.map((point) => point[1]);
    let low = Math.min(...values), high = Math.max(...values);
    if (!signed) low = Math.min(low, 0);
    if (high - low < 1e-12) { high += Math.abs(high) * 0.5 || 1; if (signed) low -= Math.abs(low) * 0.5 || 1; }
    const first = Math.min(...steps), last = Math.max(first + 1, ...steps);
    const [width, height, left, bottom] = [300, 150, 42, 20];
    const x = (step) => left + ((step - first) / (last - first)) * (width - left - 8);
    const y = (value) => 8 + (1 - (value - low) / (high - low)) * (height - bottom - 14);
    const picture = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title} by step: ` +
      lines.map((line) => `${line.name} from ${number(line.points[0][1], signed)} to ${number(line.points.at(-1)[1], signed)}`).join("; ") });
    for (const value of [low, (low + high) / 2, high]) {
      picture.append(s("line", { class: "grid", x1: left, x2: width - 8, y1: y(value), y2: y(value) }),
        s("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, number(value, signed, 2)));
    }
    if (low < 0 && high > 0) picture.append(s("line", { class: "zero", x1: left, x2: width - 8, y1: y(0), y2: y(0) }));
    picture.append(s("text", { x: x(first), y: height - 4, "text-anchor": "middle" }, String(first)),
      s("text", { x: x(last), y: height - 4, "text-anchor": "middle" }, String(last)));
    for (const line of lines) {
      const path = line.points.map(([step, value], i) => `${i ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
      picture.append(s("path", { d: path, class: `line c${line.colour}${line.held ? " held" : ""}` }));
      const every = Math.ceil(line.points.length / 60);
      line.points.forEach(([step, value], i) => {
        if (i % every) return;
        picture.append(s("circle", { cx: x(step), cy: y(value), r: line.points.length > 30 ? 2 : 3.4, class: `c${line.colour} ${line.held ? "held-dot" : "dot"}` },
          s("title", {}, `${line.name}, step ${step}: ${number(value, signed)}`)));
      });
    }
    const end = lines.find((line) => !line.held) || lines[0];
    return h("div", { class: "chart" }, h("h3", {}, title, h("span", { class: "last" }, number(end.points.at(-1)[1], signed))), picture);
  }

  function drawCurves() {
    const place = at("curves");
    const charts = FIGURES.map(([key, title, signed]) => chart(key, title, signed === "signed")).filter(Boolean);
    if (!charts.length) {
      place.append(h("p", { class: "quiet" }, "This evaluation shows no training run."));
      return;
    }
    const sample = (colour, held) => s("svg", { width: 26, height: 10, "aria-hidden": "true" }, s("path", { d: "M1 5H25", class: `line c${colour}${held ? " held" : ""}` }));
    const legend = h("p", { class: "legend" });
    data.curves.forEach((curve, colour) => {
      legend.append(h("span", {}, sample(colour % 4, false), `${curve.name}, training episodes`));
      if (Object.keys(curve.probe).length) legend.append(h("span", {}, sample(colour % 4, true), `${curve.name}, held-out questions, greedy`));
    });
    place.append(legend, h("div", { class: "charts" }, charts));
  }

  // ---- episodes --------------------------------------------------------------------------------------
  const ROW = 66;
  const QUADRANTS = [
    { z: 1, v: 1, name: "both right" }, { z: 0, v: 1, name: "gained" },
    { z: 1, v: 0, name: "lost" }, { z: 0, v: 0, name: "both wrong" },
  ];
  const list = at("list"), rows = at("rows"), detail = at("detail"), panes = at("panes");
  const state = { source: "0", text: "", count: "", quadrant: null, shown: [], current: -1 };
  const verdictOf = (result) => (result ? result[1] : null);
  const quadrantOf = (episode) => {
    const z = verdictOf(episode.b), v = verdictOf(episode.a);
    return z === null || v === null ? -1 : QUADRANTS.findIndex((quadrant) => quadrant.z === z && quadrant.v === v);
  };
  const haystacks = new Array(data.episodes.length);
  const haystack = (index) => {
    if (haystacks[index] === undefined) {
      const episode = data.episodes[index], question = data.questions[episode.q];
      const titles = new Set([...episode.t.flatMap((turn) => turn.w), ...episode.a[3]].map((passage) => data.passages[passage][0]));
      haystacks[index] = [question.q, question.i, question.d, ...question.a, episode.a[0] || "", ...episode.t.map((turn) => turn.y), ...titles].join("\n").toLowerCase();
    }
    return haystacks[index];
  };
  const sign = (verdict) => (verdict === 1 ? h("span", { class: "ok" }, "✓ right") : verdict === 0 ? h("span", { class: "no" }, "✗ wrong") : h("span", { class: "un" }, "? no verdict"));

  function filter() {
    const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
    const counts = [0, 0, 0, 0];
    let without = 0;
    state.shown = [];
    data.episodes.forEach((episode, index) => {
      if (state.source !== "" && episode.s !== Number(state.source)) return;
      if (state.count !== "" && episode.k !== Number(state.count)) return;
      if (words.length && !words.every((word) => haystack(index).includes(word))) return;
      const quadrant = quadrantOf(episode);
      if (quadrant < 0) without += 1; else counts[quadrant] += 1;
      if (state.quadrant === null || quadrant === state.quadrant) state.shown.push(index);
    });
    drawQuadrants(counts, without);
    rows.style.height = `${state.shown.length * ROW}px`;
    list.scrollTop = 0;
    at("found").textContent = state.shown.length === 0 ? "" :
      `${state.shown.length.toLocaleString("en")} of ${data.episodes.length.toLocaleString("en")} episodes` +
      (data.leftOut ? ` (${data.leftOut.toLocaleString("en")} training episodes are not in this page)` : "");
    const keep = state.shown.indexOf(state.chosen);
    select(keep >= 0 ? keep : state.shown.length ? 0 : -1, false);
  }

  function drawQuadrants(counts, without) {
    const total = counts.reduce((sum, count) => sum + count, 0) || 1;
    const cell = (quadrant) => h("button", { type: "button", class: "quad", "data-quadrant": quadrant, "aria-pressed": String(state.quadrant === quadrant),
      "aria-label": `${QUADRANTS[quadrant].name}: ${counts[quadrant]}` },
    h("span", {}, QUADRANTS[quadrant].name), h("span", {}, h("strong", {}, counts[quadrant].toLocaleString("en")), " ", h("span", { class: "share" }, `${Math.round((100 * counts[quadrant]) / total)} %`)));
    const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.quadrant : undefined;
    at("quadrants").replaceChildren(
      h("span", {}), h("span", { class: "head" }, "baseline right"), h("span", { class: "head" }, "baseline wrong"),
      h("span", { class: "side" }, "searcher right"), cell(0), cell(1),
      h("span", { class: "side" }, "searcher wrong"), cell(2), cell(3));
    if (without) at("quadrants").append(h("span", { class: "side", style: "grid-column:1/-1" }, `${without} without both verdicts`));
    if (focused !== undefined) at("quadrants").querySelector(`[data-quadrant="${focused}"]`)?.focus();
  }

  // Only the rows in view exist.
  function drawRows() {
    const from = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
    const to = Math.min(state.shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 4);
    const nodes = [];
    for (let place = from; place < to; place += 1) {
      const episode = data.episodes[state.shown[place]];
      nodes.push(h("div", { class: "row", role: "option", id: `row-${place}`, "data-place": place, style: `top:${place * ROW}px`,
        "aria-selected": String(place === state.current), "aria-setsize": state.shown.length, "aria-posinset": place + 1 },
      h("span", { class: "q" }, data.questions[episode.q].q),
      h("span", { class: "m" }, sign(verdictOf(episode.a)), h("span", { class: "t" }, episode.a[0] || "no answer"),
        h("span", {}, episode.k === 1 ? "1 search" : `${episode.k} searches`))));
    }
    if (!state.shown.length) nodes.push(h("p", { class: "empty" }, data.episodes.length ? "No episode fits these filters." : "No arm of this evaluation has a searcher."));
    rows.replaceChildren(...nodes);
  }

  function select(place, scroll) {
    state.current = place;
    if (place >= 0) {
      state.chosen = state.shown[place];
      list.setAttribute("aria-activedescendant", `row-${place}`);
      if (scroll) {
        const top = place * ROW;
        if (top < list.scrollTop) list.scrollTop = top;
        if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
      }
    }
    drawRows();
    drawDetail();
  }

  const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  function golden(answers) {
    const words = answers.filter((answer) => answer.length > 1).sort((a, b) => b.length - a.length).map(escaped);
    return words.length ? new RegExp(`(?<![\\p{L}\\p{N}])(?:${words.join("|")})(?![\\p{L}\\p{N}])`, "giu") : null;
  }
  function marked(text, pattern) {
    if (!pattern) return [text];
    const parts = [];
    let end = 0;
    for (const match of text.matchAll(pattern)) {
      parts.push(text.slice(end, match.index), h("mark", {}, match[0]));
      end = match.index + match[0].length;
    }
    parts.push(text.slice(end));
    return parts;
  }

  function passages(ids, picked, pattern, numbered) {
    return h("ol", { class: "passages" }, ids.map((id, index) => {
      const [title, text] = data.passages[id];
      const chosen = picked.includes(index);
      return h("li", { class: chosen ? "picked" : null }, h("details", {},
        h("summary", {}, numbered && h("span", { class: "num" }, String(index + 1)), h("span", { class: "title" }, ...marked(title, pattern)),
          h("span", { class: "cut" }, text), chosen && h("span", { class: "flag" }, "✓ selected")),
        h("p", {}, ...marked(text, pattern))));
    }));
  }

  function turnParts(episode, pattern) {
    const parts = [];
    const step = (kind, title, ...inside) => parts.push(h("div", { class: `step ${kind}` }, h("h4", {}, ...[title].flat()), ...inside));
    const written = (turn) => h("details", { class: "raw" }, h("summary", {}, "What the searcher wrote"), h("pre", {}, turn.x));
    let seen = "";
    episode.t.forEach((turn, index) => {
      const window = turn.w.join();
      const same = index > 0 && window === seen;
      seen = window;
      const found = turn.w.length && !(same && !turn.c.length) ? passages(turn.w, turn.c, pattern, true) : null;
      if (index === 0) step("", "The question itself finds", found || h("p", { class: "quiet" }, "nothing"));
      else if (found) parts.at(-1).append(h("p", { class: "quiet" }, "It then sees"), found);
      if (turn.k === "search") step("search", ["Searches for ", h("span", { class: "query" }, turn.y)], written(turn));
      else if (turn.k === "complete") step("", "Stops searching", written(turn));
      else if (turn.k === "note") step("", "Writes down what helps", written(turn));
      else step("invalid", ["Writes a turn that cannot be read ", h("span", { class: "quiet" }, turn.y)], written(turn));
    });
    step("", ["Hands to the generator ", h("span", { class: "quiet" }, `(${episode.e})`)],
      episode.a[3].length ? passages(episode.a[3], [], pattern, true) : h("p", { class: "quiet" }, "no passage"));
    step("search", "The generator answers", h("span", { class: "final" }, episode.a[0] || episode.a[4] || "nothing"), " ", sign(verdictOf(episode.a)));
    return parts;
  }

  function comparison(episode) {
    const line = (name, result, tag) => h("tr", {}, h("th", { scope: "row" }, name, tag && h("span", { class: "tag" }, tag)),
      h("td", { class: "answer" }, result[0] || h("span", { class: "quiet" }, result[4] || "no answer")),
      h("td", {}, sign(result[1])), h("td", { class: "n" }, result[3].length ? `${result[3].length} passages` : ""));
    const lines = [];
    const evaluated = data.arms.indexOf(data.sources[episode.s]) >= 0 && data.results[episode.q];
    if (evaluated) {
      data.arms.forEach((name, arm) => {
        const result = data.results[episode.q][arm];
        if (result) lines.push(line(name + " ", result, arm === data.baseline ? "baseline" : null));
      });
    } else {
      lines.push(line("searcher", episode.a, null));
      if (episode.b) lines.push(line("baseline", episode.b, null));
    }
    return h("table", {}, h("tbody", {}, lines));
  }

  function drawDetail() {
    if (state.current < 0) { detail.replaceChildren(); return; }
    const episode = data.episodes[state.shown[state.current]];
    const question = data.questions[episode.q];
    const pattern = golden(question.a);
    const many = question.a.length > 8;
    const back = h("button", { type: "button", class: "back" }, "← All episodes");
    back.addEventListener("click", close);
    detail.replaceChildren(back,
      h("p", { class: "where" }, `${question.d} · ${question.i} · ${data.sources[episode.s]}` + (episode.r === undefined ? "" : ` · sample ${episode.n + 1} · reward ${number(episode.r, true)}`)),
      h("h3", { class: "question" }, question.q),
      h("ul", { class: "golds" }, h("li", {}, "Gold answers"), question.a.slice(0, 8).map((gold) => h("li", {}, gold)), many && h("li", {}, `and ${question.a.length - 8} more`)),
      comparison(episode),
      h("h3", {}, "The episode"),
      h("div", {}, turnParts(episode, pattern)));
    detail.scrollTop = 0;
  }

  function open() {
    if (state.current < 0) return;
    panes.classList.add("open");
    if (getComputedStyle(list).display === "none") { panes.scrollIntoView({ block: "start" }); detail.focus({ preventScroll: true }); }
  }
  function close() {
    panes.classList.remove("open");
    drawRows();
    list.focus();
  }

  function drawTools() {
    const source = at("source");
    data.sources.forEach((name, index) => source.append(h("option", { value: index }, name)));
    if (data.sources.length > 1) source.append(h("option", { value: "" }, "all sources"));
    const most = Math.max(0, ...data.episodes.map((episode) => episode.k));
    at("count").append(h("option", { value: "" }, "any"));
    for (let k = 0; k <= most; k += 1) at("count").append(h("option", { value: k }, String(k)));
    if (!data.sources.length) state.source = "";
  }

  function listen() {
    at("source").addEventListener("change", (event) => { state.source = event.target.value; filter(); });
    at("count").addEventListener("change", (event) => { state.count = event.target.value; filter(); });
    let wait = 0;
    at("search").addEventListener("input", (event) => {
      clearTimeout(wait);
      wait = setTimeout(() => { state.text = event.target.value; filter(); }, 120);
    });
    at("quadrants").addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) quadrant(Number(button.dataset.quadrant));
    });
    let drawn = false;
    list.addEventListener("scroll", () => {
      if (drawn) return;
      drawn = true;
      requestAnimationFrame(() => { drawn = false; drawRows(); });
    });
    list.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row) { select(Number(row.dataset.place), false); open(); }
    });
    window.addEventListener("resize", drawRows);
    document.addEventListener("keydown", keys);
  }
  function quadrant(which) {
    state.quadrant = state.quadrant === which ? null : which;
    filter();
  }
  function keys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "Escape") {
      if (panes.classList.contains("open")) { close(); return; }
      at("search").value = "";
      Object.assign(state, { text: "", quadrant: null });
      filter();
      if (typing) event.target.blur();
      return;
    }
    if (typing) return;
    if (event.key === "/") { event.preventDefault(); at("search").focus(); return; }
    if (/^[1-4]$/.test(event.key)) { quadrant(Number(event.key) - 1); return; }
    if (event.key === "Enter" && event.target === list) { open(); return; }
    const page = Math.max(1, Math.floor(list.clientHeight / ROW) - 1);
    const inList = event.target === list;
    const move = { j: 1, k: -1, ...(inList ? { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity } : {}) }[event.key];
    if (move === undefined || !state.shown.length) return;
    event.preventDefault();
    select(Math.min(state.shown.length - 1, Math.max(0, state.current + move)), true);
  }

  drawCurves();
  drawTools();
  listen();
  filter();
})();
