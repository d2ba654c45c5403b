"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  if (!data.pictures) return;
  const byId = (id) => document.getElementById(id);
  const sheets = byId("sheets"), details = byId("details"), trail = byId("trail");
  const boxes = new Map([...document.querySelectorAll("[data-box]")].map((g) => [g.dataset.box, g]));
  const edges = new Map();
  for (const path of document.querySelectorAll(".edges path"))
    for (const end of [path.dataset.from, path.dataset.to]) edges.set(end, [...(edges.get(end) || []), path]);
  let open = "p0", kept = null, scale = 1;

  // -- words

  const units = [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]];
  const short = (n) => {
    const unit = units.find(([, size]) => n >= size * 0.9995);
    return unit ? `${+(n / unit[1]).toPrecision(3)} ${unit[0]}` : `${n} `;
  };
  const amount = (a) => [
    a.multiply_adds ? `${short(a.multiply_adds).trim()} multiply-adds` : "",
    a.bytes ? `${short(a.bytes)}B written` : "",
  ].filter(Boolean).join(", ") || "nothing";

  const make = (name, text, ...inside) => {
    const made = document.createElement(name);
    if (text) made.textContent = text; // never as markup: names come from the model
    made.append(...inside);
    return made;
  };
  const list = (pairs) => {
    const made = make("dl");
    for (const [name, text] of pairs) if (text) made.append(make("dt", name), make("dd", text));
    return made;
  };

  // -- details

  const ofVertex = (number) => {
    const v = data.vertices[number];
    const reads = v.reads.map((r) => data.vertices[r].name).join(", ");
    return [
      make("h3", `${data.signs[v.rate]} ${v.name}`),
      list([
        ["runs", `${data.names[v.rate]}: ${data.meanings[v.rate]}`],
        ["operator", v.operator || v.kind],
        ["module", v.module || (v.kind === "operator" ? "(model)" : "")],
        ["result", v.shape ? `${v.shape}, ${v.dtype}` : v.dtype],
        ["rates of its parts", v.rates.map((r) => data.names[r]).join(", ")],
        ["before, each", v.before && amount(v.before)],
        ["now, per request", v.request && amount(v.request)],
        ["now, each", v.candidate && amount(v.candidate)],
        ["moved by level", v.level],
        ["why it stays", v.reason],
        ["choice", v.choice && `${v.choice}: ${data.choices[v.choice]}`],
        ["law", v.rule || (v.kind === "operator" ? "none: the original operator" : "")],
        ["reads", reads],
        ["weights", v.weights.join(", ")],
      ]),
    ];
  };

  const ofBox = (box) => {
    if (box.vertices.length === 1) return ofVertex(box.vertices[0]);
    const [before, request, candidate] = box.call;
    const members = box.vertices.slice(0, 300).map((number) => {
      const button = make("button", data.vertices[number].name);
      button.type = "button";
      button.className = "show";
      button.addEventListener("click", () => details.replaceChildren(...ofVertex(number)));
      return make("li", "", button, ` ${data.signs[data.vertices[number].rate]} ${data.vertices[number].module}`);
    });
    const made = [
      make("h3", `${data.signs[box.rate]} ${box.title}`),
      list([
        ["runs", `${data.names[box.rate]}: ${data.meanings[box.rate]}`],
        ["module", box.path],
        ["before, per call", amount(before)],
        ["request stage", amount(request)],
        ["candidate stage", amount(candidate)],
      ]),
      make("p", `${box.vertices.length} inside:`),
      make("ul", "", ...members),
    ];
    if (box.opens) {
      const button = make("button", "open");
      button.type = "button";
      button.addEventListener("click", () => show(box.opens));
      made.splice(2, 0, button);
    }
    return made;
  };

  const light = (key, on) => (edges.get(key) || []).forEach((path) => path.classList.toggle("on", on));
  const look = (key) => details.replaceChildren(...ofBox(data.boxes[key]));
  const keep = (key) => {
    if (kept) { boxes.get(kept).classList.remove("kept"); light(kept, false); }
    kept = key;
    if (key) { boxes.get(key).classList.add("kept"); light(key, true); look(key); }
  };

  // -- pictures

  const svg = () => byId(open).querySelector(".picture");
  const zoom = (to) => {
    scale = Math.min(Math.max(to, 0.15), 4);
    const [, , width, height] = svg().getAttribute("viewBox").split(" ").map(Number);
    svg().setAttribute("width", width * scale);
    svg().setAttribute("height", height * scale);
  };
  const fit = () => {
    const [, , width] = svg().getAttribute("viewBox").split(" ").map(Number);
    zoom(Math.min(1, Math.max(0.62, (sheets.clientWidth - 4) / width))); // smaller cannot be read: it scrolls instead
  };
  const show = (key) => {
    keep(null);
    byId(open).hidden = true;
    open = key;
    byId(open).hidden = false;
    const path = [];
    for (let at = key; at; at = data.pictures[at].parent) path.unshift(at);
    trail.replaceChildren(...path.flatMap((at, i) => {
      const button = make("button", data.pictures[at].title);
      button.type = "button";
      if (at === key) button.setAttribute("aria-current", "page");
      button.addEventListener("click", () => show(at));
      return i ? ["›", button] : [button];
    }));
    sheets.scrollTo(0, 0);
    fit();
  };
  const act = (key) => {
    const opens = data.boxes[key].opens;
    if (!opens) return keep(key);
    show(opens);
    const first = byId(opens).querySelector("[data-box]");
    if (first) first.focus({ preventScroll: true });
  };

  // One listener for all boxes: there may be thousands.
  const on = (type, does) => sheets.addEventListener(type, (event) => {
    const g = event.target.closest("[data-box]");
    if (g) does(g.dataset.box, event, g);
  });
  const enter = (key) => { light(key, true); if (!kept) look(key); };
  const leave = (key, event, g) => { if (key !== kept && !g.contains(event.relatedTarget)) light(key, false); };
  on("mouseover", enter);
  on("focusin", enter);
  on("mouseout", leave);
  on("focusout", leave);
  on("click", (key) => { if (!moved) act(key); });
  on("keydown", (key, event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    act(key);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (kept) keep(null);
    else if (data.pictures[open].parent) show(data.pictures[open].parent);
  });

  // A name in a table shows its operator: in the deepest picture that has a box for it.
  const home = (number) => {
    const holding = Object.keys(data.boxes).filter((key) => !data.boxes[key].outside && data.boxes[key].vertices.includes(number));
    return holding.sort((a, b) => data.boxes[a].vertices.length - data.boxes[b].vertices.length)[0];
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.show[data-vertex]");
    if (!button) return;
    const number = Number(button.dataset.vertex), key = home(number);
    show(key.split("-")[0]);
    keep(key);
    details.replaceChildren(...ofVertex(number));
    boxes.get(key).scrollIntoView({ block: "center", inline: "center" });
  });

  // -- zoom and drag

  byId("in").addEventListener("click", () => zoom(scale * 1.25));
  byId("out").addEventListener("click", () => zoom(scale / 1.25));
  byId("fit").addEventListener("click", fit);
  sheets.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoom(scale * (event.deltaY < 0 ? 1.1 : 1 / 1.1));
  }, { passive: false });
  let from = null, moved = false;
  sheets.addEventListener("mousedown", (event) => {
    from = [event.clientX + sheets.scrollLeft, event.clientY + sheets.scrollTop];
    moved = false;
  });
  document.addEventListener("mousemove", (event) => {
    if (!from) return;
    const [dx, dy] = [from[0] - event.clientX - sheets.scrollLeft, from[1] - event.clientY - sheets.scrollTop];
    if (!moved && Math.abs(dx) + Math.abs(dy) < 5) return;
    moved = true;
    sheets.classList.add("dragged");
    sheets.scrollBy(dx, dy);
  });
  document.addEventListener("mouseup", () => { from = null; sheets.classList.remove("dragged"); });

  show("p0");
})();
