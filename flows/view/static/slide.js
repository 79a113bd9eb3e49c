"use strict";
// The page of one slide: layers, scale bar, pointer and object table around OpenSeadragon, which pans and zooms.
const byId = (id) => document.getElementById(id);
const NAMES = { image: "Image", fills: "Objects, filled", heat: "Probability", distance: "Map: distance",
  centre: "Map: centre", boundary: "Map: boundary", threshold: "Above threshold", tissue: "Tissue",
  "left-out": "Skipped or unreadable", grid: "Block grid", outlines: "Outlines" };
const INITIAL_OPACITY = { image: 1, fills: 0.4, heat: 0.7, distance: 0.7, centre: 0.7, boundary: 0.7,
  threshold: 0.5, tissue: 0.25, "left-out": 0.5, grid: 0.6, outlines: 1 };
const INITIALLY_SHOWN = ["image", "outlines"], OF_OBJECTS = ["fills", "outlines"];
const DEBOUNCE_MS = 90, FIRST_MS = 2000;
const MIN_SCREEN_PX = 0.8;  // minimum screen pixels per pixel of the displayed level

const getJson = async (address) => {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
};
function debounced(act) {  // run act once its trigger has paused
  let timer;
  return (...given) => { clearTimeout(timer); timer = setTimeout(() => act(...given), DEBOUNCE_MS); };
}
const number = (value, digits) => value.toLocaleString("en", { maximumFractionDigits: digits }).replaceAll(",", "\u202f");

// ---- layers -----------------------------------------------------------------------------------------------------------

class Layers {
  constructor(viewer, about) {
    Object.assign(this, { viewer, about, threshold: about.threshold, chosen: "", items: new Map() });
    for (const name of Object.keys(about.layers)) byId("layers").append(this.control(name));
    const slider = byId("threshold").querySelector("input"), said = byId("threshold").querySelector("output");
    byId("threshold").hidden = !("threshold" in about.layers);
    slider.value = said.value = this.threshold;
    const redraw = debounced(() => this.items.get("threshold") && this.add("threshold"));
    slider.addEventListener("input", () => {
      this.threshold = Number(slider.value);
      said.value = slider.value;
      redraw();
    });
    for (const [name, colour] of about.classes) {
      const key = Object.assign(document.createElement("span"), { textContent: name });
      const patch = document.createElement("i");
      patch.style.background = `rgb(${colour})`;
      key.prepend(patch);
      byId("legend").append(key);
    }
  }

  source(name) {
    const { about } = this, finest = about.layers[name], across = 2 ** finest;
    return {
      width: Math.ceil(about.width / across), height: Math.ceil(about.height / across), tileSize: about.tile,
      minLevel: 0, maxLevel: about.levels - 1 - finest,
      getTileUrl: (level, col, row) => {
        return `tile/${name}/${about.levels - 1 - level}/${row}/${col}?v=${about.version}${this.layerQuery(name)}`;
      },
    };
  }

  layerQuery(name) {  // query of a layer: threshold or object filter
    if (name === "threshold") return `&t=${this.threshold}`;
    return OF_OBJECTS.includes(name) && this.chosen ? `&${this.chosen}` : "";
  }

  choose(query) {  // draw only the objects that the table lists
    if (query === this.chosen) return;
    this.chosen = query;
    for (const name of OF_OBJECTS) if (this.items.get(name)) this.add(name);
  }

  add(name) {  // add a layer, or replace it in place
    const { about, viewer } = this, tileSource = this.source(name), asked = this.layerQuery(name);
    const order = Object.keys(about.layers), under = order.slice(0, order.indexOf(name)), before = this.items.get(name);
    this.items.set(name, null);
    viewer.addTiledImage({
      tileSource, opacity: this.opacity(name), width: tileSource.width * 2 ** about.layers[name] / about.width,
      replace: Boolean(before),
      index: before ? viewer.world.getIndexOfItem(before) : under.filter((other) => this.items.get(other)).length,
      success: ({ item }) => {
        Object.defineProperty(item.source, "minLevel", { get: () => this.coarsest(item.source, name) });
        this.items.set(name, item);
        this.place(name);
        if (asked !== this.layerQuery(name)) this.add(name);
      },
    });
  }

  coarsest(source, name) {  // coarsest level fetched; for the image one more, shown while better tiles load
    const { viewport } = this.viewer, zoom = Math.min(viewport.getZoom(true), viewport.getZoom(false));
    const best = Math.ceil(Math.log2(MIN_SCREEN_PX * source.width / (zoom * viewport.getContainerSize().x)) - 1e-6);
    const least = this.about.levels - 1 - this.about.coarsest;
    return Math.min(source.maxLevel, Math.max(least, source.maxLevel - Math.max(0, best) - (name === "image")));
  }

  place(name) {  // layers added together may load in any order
    const loaded = Object.keys(this.about.layers).filter((other) => this.items.get(other));
    loaded.forEach((other, at) => this.viewer.world.setItemIndex(this.items.get(other), at));
    this.items.get(name).setOpacity(this.opacity(name));
  }

  opacity(name) {
    const row = byId(`layer-${name}`);
    return row.querySelector("[type=checkbox]").checked ? Number(row.querySelector("[type=range]").value) : 0;
  }

  control(name) {
    const row = Object.assign(document.createElement("div"), { id: `layer-${name}`, className: "layer" });
    const label = document.createElement("label"), box = Object.assign(document.createElement("input"), { type: "checkbox" });
    const range = Object.assign(document.createElement("input"), { type: "range", min: 0, max: 1, step: 0.05 });
    range.value = INITIAL_OPACITY[name];
    range.setAttribute("aria-label", `Opacity: ${NAMES[name]}`);
    box.checked = INITIALLY_SHOWN.includes(name);
    label.append(box, NAMES[name]);
    row.append(label, range);
    row.addEventListener("input", () => this.change(name));
    return row;
  }

  change(name) {
    if (!this.items.has(name)) this.add(name);
    else this.items.get(name)?.setOpacity(this.opacity(name));
  }

  start() {
    for (const name of Object.keys(this.about.layers)) if (this.opacity(name)) this.add(name);
  }
}

// ---- scale and pointer ------------------------------------------------------------------------------------------------

function scaleBar(viewer, about) {
  const bar = byId("scale").querySelector("i"), text = byId("scale").querySelector("span");
  let coarser = true;  // at full resolution and above, pixels are neither smoothed nor drawn twice to hide a seam
  viewer.drawer.minimumOverlapRequired = () => coarser;
  const draw = () => {
    const umPerPx = about.mpp * about.width / (viewer.viewport.getZoom(true) * viewer.viewport.getContainerSize().x);
    const most = 140 * umPerPx, power = 10 ** Math.floor(Math.log10(most));
    const um = [5, 2, 1].map((step) => step * power).find((length) => length <= most * (1 + 1e-9));
    bar.style.width = `${um / umPerPx}px`;
    text.textContent = um >= 1000 ? `${um / 1000} mm` : `${Number(um.toPrecision(1))} \u00b5m`;
    coarser = umPerPx > about.mpp * 1.001;
    viewer.drawer.setImageSmoothingEnabled(coarser);
  };
  viewer.addHandler("update-viewport", draw);
  viewer.addHandler("resize", draw);
}

function pointer(viewer, about) {
  const values = byId("under").querySelectorAll("dd");
  let asked = 0;
  const ask = debounced(async (x, y) => {
    const mine = ++asked, { object, id } = await getJson(`at.json?y=${y}&x=${x}`);
    if (mine !== asked) return;
    const said = object
      ? [object.id, object.class, `${number(object.area_um2, 2)} \u00b5m\u00b2`, object.mean_probability.toFixed(3)]
      : [id || "\u2013", "\u2013", "\u2013", "\u2013"];
    values.forEach((value, at) => { value.textContent = said[at]; });
  });
  new OpenSeadragon.MouseTracker({
    element: viewer.canvas,
    moveHandler: (event) => {
      const place = viewer.viewport.viewerElementToViewportCoordinates(event.position);
      const [x, y] = [place.x * about.width, place.y * about.width];
      const inside = x >= 0 && y >= 0 && x < about.width && y < about.height;
      byId("where").textContent = inside ? `x ${number(x * about.mpp, 1)}  y ${number(y * about.mpp, 1)} \u00b5m` : "";
      if (inside && about.objects !== null) ask(Math.floor(x), Math.floor(y));
    },
  });
}

// ---- objects ----------------------------------------------------------------------------------------------------------

const COLUMNS = [["id", "Id", null], ["class", "Class", null], ["area_um2", "Area, \u00b5m\u00b2", 2],
  ["mean_probability", "Probability", 3], ["centroid_x_um", "x, \u00b5m", 1], ["centroid_y_um", "y, \u00b5m", 1]];

class Objects {
  constructor(viewer, about, layers) {
    Object.assign(this, { viewer, about, layers, order: "-area_um2", page: 0, picked: new Set(), asked: 0 });
    byId("objects").hidden = false;
    for (const late of document.querySelectorAll("img[data-src]")) late.src = late.dataset.src;  // megabytes, outside the first view
    const head = document.querySelector("#objects thead tr");
    for (const [name, words] of COLUMNS) {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: words });
      const cell = document.createElement("th");
      cell.dataset.of = name;
      button.addEventListener("click", () => this.sort(name));
      cell.append(button);
      head.append(cell);
    }
    const again = debounced(() => { this.page = 0; this.show(); });
    byId("filter").addEventListener("input", again);
    byId("filter").addEventListener("submit", (event) => event.preventDefault());
    byId("before").addEventListener("click", () => { this.page -= 1; this.show(); });
    byId("after").addEventListener("click", () => { this.page += 1; this.show(); });
    this.show();
  }

  sort(name) {
    this.order = this.order === `-${name}` ? name : `-${name}`;
    this.page = 0;
    this.show();
  }

  query(more) {
    const filled = [...new FormData(byId("filter"))].filter(([, value]) => value !== "");
    return new URLSearchParams([...filled, ...Object.entries(more)]).toString();
  }

  async show() {
    const mine = ++this.asked;
    this.layers.choose(this.query({}));
    const [found, histograms] = await Promise.all([
      getJson(`objects.json?${this.query({ order: this.order, page: this.page })}`), getJson(`histograms.json?${this.query({})}`)]);
    if (mine !== this.asked) return;
    const pages = Math.max(1, Math.ceil(found.total / this.about.rows));
    document.querySelector("#objects tbody").replaceChildren(...found.rows.map((row) => this.row(row)));
    byId("total").value = `${number(found.total, 0)} of ${number(this.about.objects, 0)} objects.`;
    byId("page").value = `${this.page + 1} of ${number(pages, 0)}`;
    byId("before").disabled = this.page === 0;
    byId("after").disabled = this.page + 1 >= pages;
    for (const cell of document.querySelectorAll("#objects th[data-of]")) {
      const now = this.order.replace("-", "") === cell.dataset.of;
      if (now) cell.setAttribute("aria-sort", this.order.startsWith("-") ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    }
    this.link();
    bars(byId("by-area"), histograms.area_um2);
    bars(byId("by-probability"), histograms.mean_probability);
  }

  link() {
    const chosen = this.picked.size ? new URLSearchParams({ ids: [...this.picked].join() }).toString() : this.query({});
    byId("csv").href = `objects.csv?${chosen}`;
    byId("csv").textContent = this.picked.size ? `CSV of ${this.picked.size} selected` : "Download CSV";
  }

  row(object) {
    const row = document.createElement("tr"), tick = Object.assign(document.createElement("input"), { type: "checkbox" });
    tick.checked = this.picked.has(object.id);
    tick.setAttribute("aria-label", `Select object ${object.id}`);
    tick.addEventListener("click", (event) => event.stopPropagation());
    tick.addEventListener("change", () => {
      if (tick.checked) this.picked.add(object.id);
      else this.picked.delete(object.id);
      this.link();
    });
    row.insertCell().append(tick);
    for (const [name, , digits] of COLUMNS) {
      const cell = row.insertCell();
      cell.textContent = digits === null ? object[name] : number(object[name], digits);
    }
    row.addEventListener("click", () => this.goTo(object, row));
    return row;
  }

  goTo(object, row) {
    for (const other of document.querySelectorAll("#objects tr.here")) other.classList.remove("here");
    row.classList.add("here");
    const { viewer, about } = this, um = about.mpp * about.width;  // viewport units: the slide is 1 wide
    const [x, y] = [object.centroid_x_um / um, object.centroid_y_um / um];
    const radius = (1.4 * Math.sqrt(object.area_um2 / Math.PI) + 2) / um;
    byId("ring")?.remove();
    viewer.clearOverlays();
    const ring = Object.assign(document.createElement("div"), { id: "ring" });
    viewer.addOverlay({ element: ring, location: new OpenSeadragon.Rect(x - radius, y - radius, 2 * radius, 2 * radius) });
    viewer.viewport.panTo(new OpenSeadragon.Point(x, y));
    viewer.viewport.zoomTo(Math.max(viewer.viewport.getZoom(), fullZoom(viewer, about)));
    byId("view").scrollIntoView({ block: "nearest", behavior: "smooth" });
  }
}

const fullZoom = (viewer, about) => about.width / viewer.viewport.getContainerSize().x;

function bars(svg, { counts, edges }) {
  const make = (name, attributes, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const most = Math.max(1, ...counts), wide = 320 / counts.length, short = (value) => Number(value.toPrecision(3));
  svg.replaceChildren(
    ...counts.map((count, at) => {
      const high = 88 * count / most, bar = make("rect", { x: at * wide + 0.5, y: 90 - high, width: wide - 1, height: high });
      bar.append(make("title", {}, `${short(edges[at])} to ${short(edges[at + 1])}: ${number(count, 0)}`));
      return bar;
    }),
    make("line", { x1: 0, x2: 320, y1: 90, y2: 90 }),
    make("text", { x: 0, y: 106 }, short(edges[0])),
    make("text", { x: 320, y: 106, "text-anchor": "end" }, short(edges.at(-1))));
}

// ---- start ------------------------------------------------------------------------------------------------------------

const firstView = (viewer) => new Promise((seen) => {  // the table waits for the first view, at most FIRST_MS
  setTimeout(seen, FIRST_MS);
  viewer.world.addOnceHandler("add-item", ({ item }) => item.whenFullyLoaded(seen));
});

async function start() {
  const about = await getJson("about.json");
  const viewer = OpenSeadragon({
    element: byId("view"), drawer: "canvas", showNavigationControl: false, showNavigator: true, navigatorPosition: "TOP_RIGHT",
    navigatorBackground: "#eceef1", navigatorBorderColor: "#c9ced6", navigatorDisplayRegionColor: "#d55e00", navigatorOpacity: 1,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true }, animationTime: 0.15, maxZoomPixelRatio: 16,
    subPixelRoundingForTransparency: OpenSeadragon.SUBPIXEL_ROUNDING_OCCURRENCES.ALWAYS, immediateRender: true,
    smoothTileEdgesMinZoom: Infinity, minPixelRatio: MIN_SCREEN_PX, visibilityRatio: 0.3, maxImageCacheCount: 400, maxTilesPerFrame: 12,
  });
  if (about.coarsest < about.levels - 1) {  // an incomplete slide lacks the coarse levels of a full view
    viewer.viewport.minZoomLevel = MIN_SCREEN_PX * fullZoom(viewer, about) / 2 ** about.coarsest;
  }
  const layers = new Layers(viewer, about);
  layers.start();
  viewer.addHandler("open", () => viewer.viewport.goHome(true));
  scaleBar(viewer, about);
  pointer(viewer, about);
  window.overtile = { viewer, about, layers };
  if (about.objects === null) return;
  await firstView(viewer);
  window.overtile.table = new Objects(viewer, about, layers);
}
start();
