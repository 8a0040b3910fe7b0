"use strict";
// Draws the curves and the episode browser from the embedded JSON: an index at once, blocks when something in them is
// looked at. Data becomes text nodes and attributes of elements made here; it is never parsed as markup.
(async () => {
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
  // ---- data ------------------------------------------------------------------------------------------
  const unpacked = new Map();
  function block(name) {
    if (!unpacked.has(name)) unpacked.set(name, unpack(at(`b-${name}`)));
    return unpacked.get(name);
  }
  async function unpack(element) {
    const text = atob(element.textContent);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
    return JSON.parse(await new Response(stream).text());
  }
  if (typeof DecompressionStream === "undefined") {
    at("found").textContent = "This browser cannot open the episodes; one of 2023 or later can.";
    return;
  }
  const data = await block("index");
  const episodes = data.episodes, questions = data.questions;
  const part = (kind, place) => block(`${kind}-${Math.floor(place / data.block)}`).then((all) => all[place % data.block]);
  // What lists and filters need of an episode; turns and passages come from its block.
  const brief = (index) => ({ s: episodes.s[index], q: episodes.q[index], n: episodes.n[index], v: episodes.v[index], z: episodes.z[index],
    k: episodes.k[index], x: episodes.x[index], e: episodes.e[index], u: episodes.u[index], r: episodes.r[index] });
  const total = episodes.s.length;

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
  const QUADRANTS = [{ name: "both right" }, { name: "gained" }, { name: "lost" }, { name: "both wrong" }];
  const list = at("list"), rows = at("rows"), detail = at("detail"), panes = at("panes");
  const state = { source: "0", against: "", dataset: "", ended: "", text: "", count: "", quadrant: null, shown: [], current: -1 };
  // The verdict that an episode is set against: the baseline's, or another searcher's on the same question.
  let others = new Map();
  function setAgainst() {
    others = new Map();
    if (state.against === "") return;
    for (let index = 0; index < total; index += 1) {
      if (episodes.s[index] === Number(state.against) && !others.has(episodes.q[index])) others.set(episodes.q[index], index);
    }
  }
  const other = (index) => (state.against === "" ? undefined : others.get(episodes.q[index]));
  const againstVerdict = (index) => (state.against === "" ? episodes.z[index] : other(index) === undefined ? null : episodes.v[other(index)]);
  function quadrantOf(index) {
    const z = againstVerdict(index), v = episodes.v[index];
    if (z === null || v === null) return -1;
    return v === 1 ? (z === 1 ? 0 : 1) : z === 1 ? 2 : 3;
  }

  // Words are looked for in questions, ids and answers at once, in queries, gold answers and titles once all blocks
  // are open.
  const briefly = new Array(total), wholly = new Array(total);
  let everything = null;
  function haystack(index) {
    if (wholly[index] !== undefined) return wholly[index];
    if (briefly[index] === undefined) {
      const q = episodes.q[index];
      briefly[index] = [questions.q[q], questions.i[q], data.datasets[questions.d[q]], episodes.x[index] || ""].join("\n").toLowerCase();
    }
    return briefly[index];
  }
  async function openAll() {
    const count = (n) => Math.ceil(n / data.block);
    const golds = (await Promise.all(Array.from({ length: count(questions.q.length) }, (_, n) => block(`questions-${n}`)))).flat();
    const titles = [];
    for (let n = 0; at(`b-passages-${n}`); n += 1) for (const passage of await unpack(at(`b-passages-${n}`))) titles.push(passage[0].toLowerCase());
    for (let n = 0; n < count(total); n += 1) {
      at("found").textContent = `Opening all episodes to search in them … ${Math.round((100 * n) / count(total))} %`;
      (await unpack(at(`b-episodes-${n}`))).forEach((episode, i) => {
        const index = n * data.block + i;
        const seen = new Set([...episode.t.flatMap((turn) => turn.w), ...episode.a[3]].map((passage) => titles[passage]));
        const said = [...golds[episodes.q[index]].a, ...episode.t.map((turn) => turn.y)].join("\n").toLowerCase();
        wholly[index] = [haystack(index), said, ...seen].join("\n");
      });
    }
  }
  const verdictOf = (result) => (result ? result[1] : null);
  const sign = (verdict) => (verdict === 1 ? h("span", { class: "ok" }, "✓ right") : verdict === 0 ? h("span", { class: "no" }, "✗ wrong") : h("span", { class: "un" }, "? no verdict"));

  function filter() {
    const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length && everything === null) {
      everything = openAll().then(() => filter(), (error) => { at("found").textContent = String(error); });
    }
    const counts = [0, 0, 0, 0];
    let without = 0;
    state.shown = [];
    for (let index = 0; index < total; index += 1) {
      if (state.source !== "" && episodes.s[index] !== Number(state.source)) continue;
      if (state.dataset !== "" && questions.d[episodes.q[index]] !== Number(state.dataset)) continue;
      if (state.count !== "" && episodes.k[index] !== Number(state.count)) continue;
      if (state.ended === "unreadable" ? episodes.u[index] === 0 : state.ended !== "" && episodes.e[index] !== Number(state.ended)) continue;
      if (words.length && !words.every((word) => haystack(index).includes(word))) continue;
      const quadrant = quadrantOf(index);
      if (quadrant < 0) without += 1; else counts[quadrant] += 1;
      if (state.quadrant === null || quadrant === state.quadrant) state.shown.push(index);
    }
    drawQuadrants(counts, without);
    rows.style.height = `${state.shown.length * ROW}px`;
    list.scrollTop = 0;
    at("found").textContent = state.shown.length === 0 ? "" :
      `${state.shown.length.toLocaleString("en")} of ${total.toLocaleString("en")} episodes` +
      (data.leftOut ? ` (${data.leftOut.toLocaleString("en")} training episodes are not in this page)` : "");
    const keep = state.shown.indexOf(state.chosen);
    select(keep >= 0 ? keep : state.shown.length ? 0 : -1, false);
  }

  function drawQuadrants(counts, without) {
    const known = counts.reduce((sum, count) => sum + count, 0) || 1;
    const against = state.against === "" ? "baseline" : "other";
    const cell = (quadrant) => h("button", { type: "button", class: "quad", "data-quadrant": quadrant, "aria-pressed": String(state.quadrant === quadrant),
      "aria-label": `${QUADRANTS[quadrant].name}: ${counts[quadrant]}` },
    h("span", {}, QUADRANTS[quadrant].name), h("span", {}, h("strong", {}, counts[quadrant].toLocaleString("en")), " ", h("span", { class: "share" }, `${Math.round((100 * counts[quadrant]) / known)} %`)));
    const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.quadrant : undefined;
    at("quadrants").replaceChildren(
      h("span", {}), h("span", { class: "head" }, `${against} right`), h("span", { class: "head" }, `${against} wrong`),
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
      const episode = brief(state.shown[place]);
      nodes.push(h("div", { class: "row", role: "option", id: `row-${place}`, "data-place": place, style: `top:${place * ROW}px`,
        "aria-selected": String(place === state.current), "aria-setsize": state.shown.length, "aria-posinset": place + 1 },
      h("span", { class: "q" }, questions.q[episode.q]),
      h("span", { class: "m" }, sign(episode.v), h("span", { class: "t" }, episode.x || "no answer"),
        h("span", {}, episode.k === 1 ? "1 search" : `${episode.k} searches`))));
    }
    if (!state.shown.length) nodes.push(h("p", { class: "empty" }, total ? "No episode fits these filters." : "No arm of this evaluation has a searcher."));
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
    drawDetail().catch((error) => detail.append(String(error)));
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

  function passages(pages, ids, picked, pattern, numbered) {
    return h("ol", { class: "passages" }, ids.map((id, index) => {
      const [title, text] = pages.get(id);
      const chosen = picked.includes(index);
      return h("li", { class: chosen ? "picked" : null }, h("details", {},
        h("summary", {}, numbered && h("span", { class: "num" }, String(index + 1)), h("span", { class: "title" }, ...marked(title, pattern)),
          h("span", { class: "cut" }, text), chosen && h("span", { class: "flag" }, "✓ selected")),
        h("p", {}, ...marked(text, pattern))));
    }));
  }

  // One shade a token: the less likely the searcher thought it, the stronger.
  function written(turn) {
    const mean = turn.l.length ? turn.l.reduce((sum, one) => sum + one, 0) / turn.l.length / 1000 : null;
    const title = h("summary", {}, "What the searcher wrote", mean !== null && h("span", { class: "quiet" }, ` · ${turn.l.length} tokens, mean log-probability ${number(mean, false)}`));
    const tokens = turn.i && turn.i.length === turn.l.length && turn.i.every((id) => data.pieces[id] !== undefined);
    const likely = (one) => Math.exp(one / 1000);
    const say = (one, text) => `${text === undefined ? "" : JSON.stringify(text) + ": "}probability ${number(likely(one), false, 2)}, log ${number(one / 1000, false)}`;
    const shade = (one) => `--p:${Math.round(100 * (1 - likely(one)))}%`;
    const body = tokens
      ? h("pre", { class: "tokens" }, turn.l.map((one, i) => h("span", { style: shade(one), title: say(one, data.pieces[turn.i[i]]) }, data.pieces[turn.i[i]])))
      : h("pre", {}, turn.x);
    const strip = !tokens && turn.l.length > 0 && h("div", { class: "strip", role: "img", "aria-label": `log-probability of ${turn.l.length} tokens, the least ${number(Math.min(...turn.l) / 1000, false)}` },
      turn.l.map((one) => h("i", { style: shade(one), title: say(one) })));
    return h("details", { class: "raw" }, title, body, strip);
  }

  function turnParts(episode, end, pages, pattern) {
    const parts = [];
    const step = (kind, title, ...inside) => parts.push(h("div", { class: `step ${kind}` }, h("h4", {}, ...[title].flat()), ...inside));
    let seen = "";
    episode.t.forEach((turn, index) => {
      const window = turn.w.join();
      const same = index > 0 && window === seen;
      seen = window;
      const found = turn.w.length && !(same && !turn.c.length) ? passages(pages, turn.w, turn.c, pattern, true) : null;
      if (index === 0) step("", "The question itself finds", found || h("p", { class: "quiet" }, "nothing"));
      else if (found) parts.at(-1).append(h("p", { class: "quiet" }, "It then sees"), found);
      if (turn.k === "search") step("search", ["Searches for ", h("span", { class: "query" }, turn.y)], written(turn));
      else if (turn.k === "complete") step("", "Stops searching", written(turn));
      else if (turn.k === "note") step("", "Writes down what helps", written(turn));
      else step("invalid", ["Writes a turn that cannot be read ", h("span", { class: "quiet" }, turn.y)], written(turn));
    });
    step("", ["Hands to the generator ", h("span", { class: "quiet" }, `(${end})`)],
      episode.a[3].length ? passages(pages, episode.a[3], [], pattern, true) : h("p", { class: "quiet" }, "no passage"));
    step("search", "The generator answers", h("span", { class: "final" }, episode.a[0] || episode.a[4] || "nothing"), " ", sign(verdictOf(episode.a)),
      episode.a[5] && h("p", { class: "quiet why" }, episode.a[5]));
    return parts;
  }

  function comparison(index, episode, results) {
    const line = (name, result, tag) => h("tr", {}, h("th", { scope: "row" }, name, tag && h("span", { class: "tag" }, tag)),
      h("td", { class: "answer" }, result[0] || h("span", { class: "quiet" }, result[4] || "no answer"), result[5] && h("span", { class: "quiet why" }, result[5])),
      h("td", {}, sign(result[1])), h("td", { class: "n" }, result[3].length ? `${result[3].length} passages` : ""));
    const lines = [];
    if (data.arms.includes(data.sources[episodes.s[index]]) && results.length) {
      data.arms.forEach((name, arm) => {
        if (results[arm]) lines.push(line(name + " ", results[arm], arm === data.baseline ? "baseline" : null));
      });
    } else {
      lines.push(line("searcher", episode.a, null));
      if (episode.b) lines.push(line("baseline", episode.b, null));
    }
    return h("table", {}, h("tbody", {}, lines));
  }

  // Everything that is shown of one episode, its passages by id.
  async function whole(index) {
    const [episode, question] = await Promise.all([part("episodes", index), part("questions", episodes.q[index])]);
    const ids = [...new Set([...episode.t.flatMap((turn) => turn.w), ...episode.a[3]])];
    const texts = await Promise.all(ids.map((id) => part("passages", id)));
    return { episode, question, pages: new Map(ids.map((id, place) => [id, texts[place]])) };
  }

  async function drawDetail() {
    if (state.current < 0) { detail.replaceChildren(); delete detail.dataset.shows; return; }
    const index = state.shown[state.current];
    if (detail.dataset.shows === `${index}/${state.against}`) return;
    detail.dataset.shows = `${index}/${state.against}`;
    const own = brief(index);
    const back = h("button", { type: "button", class: "back" }, "← All episodes");
    back.addEventListener("click", close);
    const head = [back,
      h("p", { class: "where" }, `${data.datasets[questions.d[own.q]]} · ${questions.i[own.q]} · ${data.sources[own.s]}` + (own.r === null ? "" : ` · sample ${own.n + 1} · reward ${number(own.r, true)}`)),
      h("h3", { class: "question" }, questions.q[own.q])];
    detail.replaceChildren(...head);
    detail.scrollTop = 0;
    const second = other(index);
    const [first, compared] = await Promise.all([whole(index), second === undefined ? null : whole(second)]);
    // another episode may have been chosen meanwhile
    if (detail.dataset.shows !== `${index}/${state.against}`) return;
    const golds = first.question.a;
    const pattern = golden(golds);
    detail.append(
      h("ul", { class: "golds" }, h("li", {}, "Gold answers"), golds.slice(0, 8).map((gold) => h("li", {}, gold)), golds.length > 8 && h("li", {}, `and ${golds.length - 8} more`)),
      comparison(index, first.episode, first.question.r),
      h("h3", {}, compared ? `The episode of ${data.sources[own.s]}` : "The episode"),
      h("div", {}, turnParts(first.episode, data.ends[own.e], first.pages, pattern)));
    if (compared) {
      detail.append(h("h3", { class: "second" }, `The same question under ${data.sources[episodes.s[second]]}`),
        h("div", {}, turnParts(compared.episode, data.ends[episodes.e[second]], compared.pages, pattern)));
    }
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
    let most = 0;
    for (const k of episodes.k) most = Math.max(most, k);
    at("count").append(h("option", { value: "" }, "any"));
    for (let k = 0; k <= most; k += 1) at("count").append(h("option", { value: k }, String(k)));
    if (!data.sources.length) state.source = "";
    at("against").append(h("option", { value: "" }, "the baseline"));
    data.sources.forEach((name, index) => at("against").append(h("option", { value: index }, name)));
    at("dataset").append(h("option", { value: "" }, "all"));
    data.datasets.forEach((name, index) => at("dataset").append(h("option", { value: index }, name)));
    at("ended").append(h("option", { value: "" }, "any way"));
    data.ends.forEach((name, index) => at("ended").append(h("option", { value: index }, name)));
    if (episodes.u.some((count) => count > 0)) at("ended").append(h("option", { value: "unreadable" }, "with an unreadable turn"));
  }

  function listen() {
    for (const name of ["source", "against", "dataset", "ended", "count"]) {
      at(name).addEventListener("change", (event) => {
        state[name] = event.target.value;
        if (name === "against") setAgainst();
        filter();
      });
    }
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
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
})();
