'use strict';
// Draws everything from `interactiveData` (data.js). Lengths are pixels of the frames; a pixel's centre lies half a unit inside it.
// The address after # holds what is shown: #hg&scene=2000004&show=refined&segment=2

const DEFAULTS = {
  scene: '', weights: '', compare: 'wipe', at: '50', layer: 'none', strength: '75', arrows: '', x: '', y: '',
  show: 'frame', segment: '', pasted: 'frame', before: '25', channel: '0', pooled: '50',
};
const OCCLUSION = {
  both: [[0, 114, 178], 'occluded, and found'],
  missed: [[213, 94, 0], 'occluded, not found'],
  false: [[240, 228, 66], 'visible, taken for occluded'],
};
const RULES = {
  few: 'it has fewer than four reliable pixels',
  share: 'under 20% of its pixels are reliable',
  inliers: 'under 50% of its reliable pixels are inliers',
  horizon: 'the homography has its horizon in or near the segment',
  growth: 'the homography makes it grow more than twofold',
  thin: 'its inliers lie almost on a line',
};
const MAP = [[0, 32, 76], [66, 78, 108], [124, 123, 120], [187, 175, 113], [255, 234, 70]];  // dark to bright, readable without colour vision

const find = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const text = value => String(value).replace(/[&<>"]/g, c => ({'&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;'})[c]);
const number = value => value.toLocaleString('en');
const px = (value, digits = 2) => value === null || value === undefined ? 'none' : value.toFixed(digits).replace(/^-(?=0\.?0*$)/, '').replace('-', '\u2212');
const percent = (part, whole) => `${Math.round(100 * part / whole)}%`;

let data, W, H, N, scene, section = '', hovered = null, hoveredPixel = null, hoveredFeature = null, flickered = false;
const state = {...DEFAULTS};
const decoded = new Map();

// ---------------------------------------------------------------- data

async function unpack({shape, step, data}) {
  const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'));
  const raw = new Uint8Array(await new Response(stream).arrayBuffer());
  const count = raw.length / 2, width = shape[shape.length - 1], values = new Float32Array(count);
  for (let i = 0, steps = 0; i < count; i++) {
    const change = (raw[i] | raw[count + i] << 8) << 16 >> 16;  // a signed 16-bit number
    steps = i % width ? steps + change : change;
    values[i] = steps * step;
  }
  return values;
}

async function picture(uri) {
  const image = new Image();
  image.src = uri;
  await image.decode();
  return image;
}

const each = async (object, convert) => Object.fromEntries(await Promise.all(Object.entries(object).map(async ([k, v]) => [k, await convert(v)])));

async function decode(raw) {
  const labels = await unpack(raw.segments), flow = await unpack(raw.flow);
  const estimates = await each(raw.estimates, async e => {
    const own = await unpack(e.flow), refined = refine(own, labels, e.segments);
    return {...e, flow: own, occluded: await unpack(e.occluded), refined, error: distance(own, flow), remaining: distance(refined, flow)};
  });
  const pasted = {...raw.pasted, images: await Promise.all(raw.pasted.images.map(picture)), objects: await unpack(raw.pasted.objects), estimates: await each(raw.pasted.estimates, async e => ({...e, flow: await unpack(e.flow)}))};
  const features = {...raw.features, values: await unpack(raw.features.values), labels: await unpack(raw.features.labels)};
  const lengths = Float32Array.from({length: N}, (_, i) => Math.hypot(flow[i], flow[N + i])).sort();
  return {...raw, images: await Promise.all(raw.images.map(picture)), labels, flow, occluded: await unpack(raw.occluded), estimates, pasted, features, edges: borders(labels, W, H), longest: Math.max(1, Math.ceil(lengths[N - 1])), maps: new Map()};
}

const project = (m, x, y) => {
  const depth = m[2][0] * x + m[2][1] * y + m[2][2];
  return [(m[0][0] * x + m[0][1] * y + m[0][2]) / depth, (m[1][0] * x + m[1][1] * y + m[1][2]) / depth, depth];
};

function refine(flow, labels, segments) {  // accepted segments follow their homographies
  const refined = flow.slice(), accepted = new Map(segments.filter(s => s.verdict === 'accepted').map(s => [s.label, s.matrix]));
  for (let i = 0; i < N; i++) {
    const matrix = accepted.get(labels[i]);
    if (!matrix) continue;
    const x = i % W, y = Math.floor(i / W), [u, v] = project(matrix, x, y);
    refined[i] = u - x;
    refined[N + i] = v - y;
  }
  return refined;
}

const distance = (a, b) => Float32Array.from({length: N}, (_, i) => Math.hypot(a[i] - b[i], a[N + i] - b[N + i]));

function borders(labels, width, height) {  // label -> closed polylines [x, y, x, y, ...] along the sides of its pixels
  const next = new Map(), at = (x, y) => x < 0 || y < 0 || x >= width || y >= height ? -1 : labels[y * width + x];
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
    const label = at(x, y), corners = [[x, y], [x + 1, y], [x + 1, y + 1], [x, y + 1]];
    if (!next.has(label)) next.set(label, new Map());
    [[x, y - 1], [x + 1, y], [x, y + 1], [x - 1, y]].forEach((neighbour, side) => {
      if (at(...neighbour) === label) return;
      const [a, b] = [corners[side], corners[(side + 1) % 4]].map(([cx, cy]) => cy * (width + 1) + cx), ends = next.get(label);
      ends.set(a, [...ends.get(a) ?? [], b]);
    });
  }
  return new Map([...next].map(([label, ends]) => [label, loops(ends, width + 1)]));
}

function loops(ends, columns) {  // directed sides, joined from end to start
  const found = [];
  for (const start of ends.keys()) while (ends.get(start).length) {
    const points = [];
    let corner = start;
    do { points.push(corner % columns, Math.floor(corner / columns)); corner = ends.get(corner).pop(); } while (corner !== start);
    found.push([...points, points[0], points[1]]);
  }
  return found;
}

// ---------------------------------------------------------------- colours

function flowColour(u, v, longest) {  // as `flow_to_rgb`: hue = direction, saturation = length, darker beyond the longest
  const length = Math.hypot(u, v) / longest, angle = Math.round(Math.atan2(v, u) * 180 / Math.PI + 360) % 360;
  return data.colours.wheel[angle].map(c => length <= 1 ? 255 - length * (255 - c) : 0.75 * c);
}
const errorColour = error => data.colours.error[data.colours.error_steps.filter(step => step < error).length];
function shade(share) {
  const place = Math.min(Math.max(share, 0), 1) * (MAP.length - 1), i = Math.min(Math.floor(place), MAP.length - 2);
  return MAP[i].map((c, k) => c + (place - i) * (MAP[i + 1][k] - c));
}

function paintMap(key, colour, width = W, height = H) {  // a canvas with a colour for each pixel (null: transparent), kept under its key
  if (scene.maps.has(key)) return scene.maps.get(key);
  const canvas = Object.assign(document.createElement('canvas'), {width, height});
  const context = canvas.getContext('2d'), pixels = context.createImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    const rgb = colour(i);
    if (rgb) pixels.data.set([...rgb, 255], 4 * i);
  }
  context.putImageData(pixels, 0, 0);
  scene.maps.set(key, canvas);
  return canvas;
}

const network = () => scene.estimates[state.weights];
const flowMap = (key, flow) => paintMap(key, i => flowColour(flow[i], flow[N + i], scene.longest));
const MAPS = {
  true: () => flowMap('true', scene.flow),
  flow: () => flowMap(`flow ${state.weights}`, network().flow),
  refined: () => flowMap(`refined ${state.weights}`, network().refined),
  error: () => paintMap(`error ${state.weights}`, i => errorColour(network().error[i])),
  remaining: () => paintMap(`remaining ${state.weights}`, i => errorColour(network().remaining[i])),
  occluded: () => paintMap(`occluded ${state.weights}`, i => {
    const really = scene.occluded[i], found = network().occluded[i];
    return really || found ? OCCLUSION[really && found ? 'both' : really ? 'missed' : 'false'][0] : null;
  }),
};

// ---------------------------------------------------------------- drawing

const stages = [];
function stage(id, paint) {
  const canvas = find(`#${id} .view canvas`), context = canvas.getContext('2d');
  canvas.style.aspectRatio = `${W} / ${H}`;
  const draw = () => {
    const ratio = window.devicePixelRatio || 1, width = Math.max(1, Math.round(canvas.clientWidth * ratio));
    canvas.width = width;
    canvas.height = Math.round(width * H / W);
    context.setTransform(width / W, 0, 0, width / W, 0, 0);
    paint(context, W / canvas.clientWidth);
  };
  new ResizeObserver(draw).observe(canvas);
  stages.push(draw);
  return canvas;
}

function place(context, image, smooth = true) {
  context.imageSmoothingEnabled = smooth;
  context.imageSmoothingQuality = 'high';
  context.drawImage(image, 0, 0, W, H);
}

function wipe(context, share, unit, left, right) {  // `left` up to a share of the width, `right` beyond, a line between
  const x = share / 100 * W;
  for (const [from, to, paint] of [[0, x, left], [x, W, right]]) {
    if (to <= from) continue;
    context.save();
    context.beginPath();
    context.rect(from, 0, to - from, H);
    context.clip();
    paint();
    context.restore();
  }
  if (x > 0 && x < W) outlined(context, [[x, 0, x, H]], unit, 2);
}

function line(context, paths, colour, width, dash = []) {  // polylines [x, y, x, y, ...]
  context.beginPath();
  for (const path of paths) for (let i = 0; i < path.length; i += 2) context[i ? 'lineTo' : 'moveTo'](path[i], path[i + 1]);
  Object.assign(context, {strokeStyle: colour, lineWidth: width, lineJoin: 'round', lineCap: dash.length ? 'butt' : 'round'});
  context.setLineDash(dash);
  context.stroke();
  context.setLineDash([]);
}

function outlined(context, paths, unit, width = 1.6) {  // white on black: to be seen on any ground
  line(context, paths, 'rgba(0,0,0,.75)', (width + 2) * unit);
  line(context, paths, '#fff', width * unit);
}

function arrows(context, flow, unit) {
  const paths = [];
  for (let y = 6; y < H; y += 12) for (let x = 6; x < W; x += 12) {
    const i = y * W + x, u = flow[i], v = flow[N + i], length = Math.hypot(u, v), tip = [x + .5 + u, y + .5 + v], head = Math.min(3, length / 2);
    const side = turn => [...tip, tip[0] - head * Math.cos(Math.atan2(v, u) + turn), tip[1] - head * Math.sin(Math.atan2(v, u) + turn)];
    if (length > .5) paths.push([x + .5, y + .5, ...tip], side(.5), side(-.5));
  }
  outlined(context, paths, unit);
}

const cross = (context, x, y, unit) => outlined(context, [[x - 4, y + .5, x + 5, y + .5], [x + .5, y - 4, x + .5, y + 5]], unit);

function drawFrames(context, unit) {
  const share = +state.at, layer = state.layer, [first, second] = scene.images;
  const withLayer = () => {
    place(context, first);
    if (layer !== 'none') {
      context.globalAlpha *= state.strength / 100;
      place(context, MAPS[layer](), false);
    }
  };
  if (state.compare === 'wipe') wipe(context, share, unit, withLayer, () => place(context, second));
  else {
    place(context, second);
    context.save();
    context.globalAlpha = state.compare === 'flicker' ? +!flickered : share / 100;
    if (context.globalAlpha) withLayer();
    context.restore();
  }
  if (state.arrows) arrows(context, layer === 'flow' || layer === 'error' ? network().flow : scene.flow, unit);
  const pixel = probed();
  if (pixel) cross(context, ...pixel, unit);
}

const probed = () => hoveredPixel ?? (state.x === '' || state.y === '' ? null : [+state.x, +state.y]);

const chosen = () => hovered ?? (state.segment === '' ? null : +state.segment);
const segmentOf = label => network().segments.find(s => s.label === label);

function moved(segment) {  // the segment's border in frame 2, where its homography puts it
  const {matrix, label} = segment;
  return scene.edges.get(label).map(path => {
    const there = [];
    for (let i = 0; i < path.length; i += 2) {
      const [x, y, depth] = project(matrix, path[i] - .5, path[i + 1] - .5);
      if (depth > .05) there.push(x + .5, y + .5);
    }
    return there;
  });
}

function drawSegments(context, unit) {
  const picture = state.show, label = chosen(), selected = label === null ? null : segmentOf(label), second = picture === 'frame2';
  place(context, scene.images[+second]);
  if (picture === 'refined' && selected) drawInside(context, label);
  else if (MAPS[picture]) place(context, MAPS[picture](), false);
  if (selected && !second) dim(context, label);
  if (!second) for (const [other, paths] of scene.edges) if (other > 0) line(context, paths, 'rgba(255,255,255,.4)', unit);
  for (const segment of network().segments) {
    if (!segment.rank && segment.label !== label || second && !segment.matrix) continue;
    const paths = second ? moved(segment) : scene.edges.get(segment.label), strong = segment.label === label;
    const colour = {accepted: '#2fe3a5', rejected: '#ff8c33'}[segment.verdict] || '#fff';
    line(context, paths, 'rgba(0,0,0,.7)', (strong ? 6 : 4) * unit);
    line(context, paths, colour, (strong ? 3.5 : 2) * unit, segment.verdict === 'rejected' ? [7 * unit, 5 * unit] : []);
  }
  for (const segment of network().segments) if (segment.rank && (!selected || segment === selected) && !second) badge(context, segment, unit);
}

function drawInside(context, label) {  // the refined flow inside one segment, the current flow elsewhere
  const flow = MAPS.flow(), refined = MAPS.refined();
  place(context, flow, false);
  const inside = paintMap(`inside ${label} ${state.weights}`, i => {
    if (scene.labels[i] !== label) return null;
    return flowColour(network().refined[i], network().refined[N + i], scene.longest);
  });
  if (refined) place(context, inside, false);
}

function dim(context, label) {
  const outside = paintMap(`outside ${label}`, i => scene.labels[i] === label ? null : [0, 0, 0]);
  context.globalAlpha = .45;
  place(context, outside, false);
  context.globalAlpha = 1;
}

function badge(context, segment, unit) {  // the segment's number at its middle
  let x = 0, y = 0, count = 0;
  for (let i = 0; i < N; i++) if (scene.labels[i] === segment.label) { x += i % W; y += Math.floor(i / W); count++; }
  Object.assign(context, {font: `600 ${13 * unit}px system-ui, sans-serif`, textAlign: 'center', textBaseline: 'middle', lineWidth: 3.5 * unit, strokeStyle: 'rgba(0,0,0,.8)', fillStyle: '#fff', lineJoin: 'round'});
  context.strokeText(segment.label, x / count + .5, y / count + .5);
  context.fillText(segment.label, x / count + .5, y / count + .5);
}

const targetFlow = () => {  // the flow found before, with the objects' motion put in
  const flow = network().flow.slice();
  for (let i = 0; i < N; i++) {
    const object = scene.pasted.objects[i];
    if (object) [flow[i], flow[N + i]] = scene.pasted.motions[object - 1];
  }
  return flow;
};

function objectBorders() {  // in frame 2 displaced by the objects' motions
  if (!scene.pasted.edges) scene.pasted.edges = borders(scene.pasted.objects, W, H);
  return [...scene.pasted.edges].filter(([object]) => object).flatMap(([object, paths]) => {
    const motion = state.pasted === 'frame2' ? scene.pasted.motions[object - 1] : [0, 0];
    return paths.map(path => path.map((value, axis) => value + motion[axis % 2]));
  });
}

function drawPasted(context, unit) {
  const found = scene.pasted.estimates[state.weights].flow, name = state.weights;
  const views = {
    frame: [scene.images[0], scene.pasted.images[0]],
    frame2: [scene.images[1], scene.pasted.images[1]],
    target: [MAPS.flow, () => flowMap(`target ${name}`, targetFlow())],
    found: [MAPS.flow, () => flowMap(`found ${name}`, found)],
    miss: [scene.images[0], () => {
      const target = targetFlow(), miss = distance(found, target);
      return paintMap(`miss ${name}`, i => scene.pasted.objects[i] || !network().occluded[i] ? errorColour(miss[i]) : null);
    }],
  };
  const pair = views[state.pasted].map(view => typeof view === 'function' ? view() : view);
  const paint = (image, under) => () => {
    if (under) place(context, under);
    place(context, image, image instanceof Image);
  };
  const after = paint(pair[1], state.pasted === 'miss' ? scene.pasted.images[0] : null);
  wipe(context, +state.before, unit, paint(pair[0]), () => { after(); outlined(context, objectBorders(), unit, 1); });
}

function pooledValues() {  // of the chosen channel: value of each pixel, maximum of its segment
  const {values, labels} = scene.features, size = labels.length, best = new Map();
  const own = values.subarray(+state.channel * size, (+state.channel + 1) * size);
  labels.forEach((label, i) => best.set(label, Math.max(best.get(label) ?? 0, own[i])));
  return {own, pooled: Float32Array.from(labels, label => best.get(label))};
}

function drawFeature(context, unit) {
  const {own, pooled} = pooledValues(), channel = state.channel, width = Math.round(Math.sqrt(own.length * W / H)), height = own.length / width;
  const map = (key, values) => paintMap(`${key} ${channel}`, i => shade(values[i] / 255), width, height);
  wipe(context, +state.pooled, unit, () => place(context, map('own', own), false), () => place(context, map('pooled', pooled), false));
  if (hoveredFeature === null) return;
  if (!scene.coarse) scene.coarse = borders(scene.features.labels, width, height);
  const paths = scene.coarse.get(scene.features.labels[hoveredFeature]).map(path => path.map((value, axis) => value * (axis % 2 ? H / height : W / width)));
  outlined(context, paths, unit, 2);
}

// ---------------------------------------------------------------- words

const wheelLegend = () => `<canvas width="144" height="144" class="wheel" role="img" aria-label="Key to flow colours: the colour at a place is that of the flow from the centre to it"></canvas><span>flow from the centre of the disc;<br>its rim is ${scene.longest} px, beyond is darker</span>`;
const errorLegend = () => `<div class="scale">${data.colours.error.map((c, i) => `<span><i style="display:block;background:rgb(${c})"></i><b>${i < 9 ? +data.colours.error_steps[i].toPrecision(2) : ''}</b></span>`).join('')}</div><span>endpoint error, px</span>`;
const occlusionLegend = () => Object.values(OCCLUSION).map(([c, words]) => `<span><i class="patch" style="background:rgb(${c})"></i>${words}</span>`).join('');
const shadeLegend = () => `<div class="scale">${Array.from({length: 10}, (_, i) => `<span><i style="display:block;background:rgb(${shade(i / 9).map(Math.round)})"></i></span>`).join('')}</div>`;
function legendFor(kind) {
  if (['true', 'flow', 'refined', 'target', 'found'].includes(kind)) return wheelLegend();
  if (['error', 'remaining', 'miss'].includes(kind)) return errorLegend();
  return kind === 'occluded' ? occlusionLegend() : '';
}

function setLegend(section, html) {
  const box = find(`#${section} .legend`);
  box.innerHTML = html;
  const wheel = find('.wheel', box);
  if (!wheel) return;
  const context = wheel.getContext('2d'), size = wheel.width, pixels = context.createImageData(size, size);
  for (let i = 0; i < size * size; i++) {
    const u = (i % size + .5) / size * 2 - 1, v = (Math.floor(i / size) + .5) / size * 2 - 1;
    if (Math.hypot(u, v) <= 1) pixels.data.set([...flowColour(u, v, 1), 255], 4 * i);
  }
  context.putImageData(pixels, 0, 0);
}

function tellProbe() {
  const pixel = probed();
  if (!pixel) { find('#probe').textContent = 'Point at a pixel, or move the cross by the arrow keys, to read the flow.'; return; }
  const i = pixel[1] * W + pixel[0], own = network(), pair = (flow) => `(${px(flow[i], 1)}, ${px(flow[N + i], 1)})`;
  const hidden = scene.occluded[i] ? 'hidden in frame 2' : 'visible in frame 2';
  find('#probe').textContent = `Pixel (${pixel.join(', ')}), ${hidden}: true flow ${pair(scene.flow)} px, the network's ${pair(own.flow)} px, error ${px(own.error[i], 1)} px.`;
}

function tellErrors() {
  const own = network();
  find('#errors').textContent = `Mean endpoint error of ${state.weights} in this scene: ${px(own.means.all[0])} px; ${px(own.means.visible[0])} where visible, ${px(own.means.occluded[0])} where occluded.`;
  const typical = data.average[state.weights];
  find('#typical').textContent = `The scenes on this page were chosen because something is to be seen in them. Over ${typical.scenes} held-out scenes ${state.weights} has ${number(typical.regions)} such segments, of which ${number(typical.accepted)} were accepted${typical.accepted ? '' : '.'}`
    + (!typical.accepted ? '' : `; refining took their mean error from ${px(typical.accepted_error[0])} to ${px(typical.accepted_error[1])} px, and in their occluded pixels from ${px(typical.accepted_error_occluded[0])} to ${px(typical.accepted_error_occluded[1])} px.`);
}

function why(segment) {
  if (segment.verdict === 'background') return 'No mask covers it. What has no mask is not taken for one surface, so nothing is fitted to it.';
  if (segment.verdict === 'not chosen') return segment.occluded ? `Only ${number(segment.occluded)} of its ${number(segment.pixels)} pixels are taken for occluded: it is not among the ${data.settings.regions} most occluded segments, so nothing is fitted to it.` : `None of its ${number(segment.pixels)} pixels is taken for occluded: there is nothing to complete.`;
  if (segment.verdict === 'accepted') return 'Enough of it is reliable, and enough of that moves as one plane: its flow is pulled towards the homography.';
  return `${segment.reasons.map(r => RULES[r]).join('; ').replace(/^./, c => c.toUpperCase())}. Its flow is left as it is.`;
}

function tellVerdict() {
  const label = chosen(), box = find('#verdict');
  if (label === null) {
    box.innerHTML = '<h3>No segment chosen</h3><p>Point at a segment, or tap it. A solid green outline means that its homography was accepted, a dashed orange one that it was rejected.</p>'
      + '<p>A homography is accepted if at least 20% of the segment\'s pixels, and four, are reliable; at least 50% of these are inliers; it has no horizon in or near the segment; it makes the segment grow at most twofold; and its inliers do not lie on a line.</p>';
    return;
  }
  const s = segmentOf(label), title = s.label ? `Segment ${s.label}: ` : '';
  const mark = {accepted: '\u2713 ', rejected: '\u2717 '}[s.verdict] || '';
  let html = `<h3>${title}<span class="${s.verdict}">${mark}${s.verdict}</span></h3><p>${why(s)}</p>`;
  if (s.rank) {
    const bar = (part, whole, least) => `<div class="share" aria-hidden="true"><i style="width:${100 * part / Math.max(whole, 1)}%"></i><b style="left:${least}%"></b></div>`;
    html += `<div>${number(s.pixels)} pixels, ${number(s.occluded)} occluded; reliable: ${number(s.reliable)}, ${percent(s.reliable, s.pixels)} (at least 20%)</div>${bar(s.reliable, s.pixels, 20)}`;
    html += `<div>inliers, within ${data.settings.threshold} px: ${number(s.inliers)}, ${percent(s.inliers, Math.max(s.reliable, 1))} of the reliable (at least 50%)</div>${bar(s.inliers, s.reliable, 50)}`;
    html += `<div>mean |refined \u2212 current|: ${s.verdict === 'accepted' ? `${px(s.change)} px` : '0, since its flow stays as it is'}</div>`;
    const arrow = pair => pair[0] === null ? 'it has none' : s.verdict === 'accepted' ? `${px(pair[0])} \u2192 ${px(pair[1])} px` : `${px(pair[0])} px`;
    html += `<div>mean error: ${arrow(s.error)}; where truly occluded: ${arrow(s.error_occluded)}</div>`;
    if (typeof s.otherwise === 'number') html += `<div>Had its flow followed the homography all the same, the error would be ${s.otherwise > 100 ? 'over 100' : px(s.otherwise)} px.</div>`;
  }
  box.innerHTML = html;
}

let listed = '';
function tellRegions() {
  if (listed === `${state.scene} ${state.weights}`) return;  // a table that is made anew would lose the focus
  listed = `${state.scene} ${state.weights}`;
  const rows = network().segments.filter(s => s.rank).sort((a, b) => a.rank - b.rank).map(s => {
    const error = s.verdict === 'accepted' ? `${px(s.error[0])} \u2192 ${px(s.error[1])}` : px(s.error[0]);
    return `<tr><td><label><input type="radio" name="segment" value="${s.label}"> ${s.label}</label></td><td>${number(s.occluded)} of ${number(s.pixels)}</td><td class="${s.verdict}">${s.verdict}</td><td>${error}</td></tr>`;
  });
  find('#regions tbody').innerHTML = rows.join('') || '<tr><td colspan="4">no segment has occluded pixels</td></tr>';
}

function tellObjects() {
  const {motions, estimates} = scene.pasted, own = estimates[state.weights], [from, to] = data.settings.donors;
  const rows = motions.map(([u, v], i) => `<li><i class="patch" style="display:inline-block;width:1em;height:1em;background:rgb(${flowColour(u, v, scene.longest).map(Math.round)})"></i> object ${i + 1} moves by (${px(u, 1)}, ${px(v, 1)}) px</li>`);
  find('#objects').innerHTML = `<ul>${rows.join('')}</ul><p class="numbers">Key objects of training scenes ${from} to ${to}, mirrored and sped up or slowed down at random, with the mean motion that ${text(data.settings.first)} gave them. Where two overlap, the later one covers the earlier.</p>`
    + `<p class="numbers">Shown the pasted pair, ${text(state.weights)} misses the flow asked for by ${px(own.objects)} px on the objects and by ${px(own.elsewhere)} px elsewhere, occluded pixels left out. Training also changes colours and cuts a crop, both left out here.</p>`;
}

function tellFeature() {
  const {features} = scene, channel = +state.channel;
  find('#whose').textContent = features.own ? `The features are those of ${features.weights}, which learnt with mask features.` : `The features are the ${32} channels of ${features.weights}, which does without mask features: its decoder sees what is on the left. Pooling them shows what the operator does to real features, not what a network makes of it.`;
  all('.channels span').forEach((span, i) => { span.textContent = features.channels[i] + 1; });
  setLegend('mf', `${shadeLegend()}<span>from ${px(features.low[channel])} to ${px(features.high[channel])}</span>`);
  const out = find('#feature');
  if (hoveredFeature === null) { out.textContent = 'Point at a segment to read its values.'; return; }
  const {own, pooled} = pooledValues(), value = v => px(features.low[channel] + v / 255 * (features.high[channel] - features.low[channel]));
  const label = features.labels[hoveredFeature], size = features.labels.filter(l => l === label).length;
  out.textContent = `${label ? `Segment ${label}` : 'Background'}, ${number(size)} pixels at this resolution: here ${value(own[hoveredFeature])}, pooled ${value(pooled[hoveredFeature])}.`;
}

function tellOrigins() {
  const {made, settings} = data, header = data.weights[state.weights];
  const dirty = made.uncommitted_changes ? ', with uncommitted changes' : '';
  const rule = {'range-map': 'the range map', 'forward-backward': 'the forward-backward check'}[settings.occlusion];
  find('#origin').textContent = header.steps ? `${header.preset}, ${number(+header.steps)} steps, seed ${header.seed}` : '';
  const rows = {
    Scene: `rendered scene ${number(scene.number)} of seed ${settings.seed}, ${settings.width} x ${settings.height} pixels; its masks come from the renderer. Scenes from number 2,000,000 on are never trained on. Frames are stored as WebP, slightly lossy.`,
    Network: `${state.weights}: ${Object.entries(header).filter(([, v]) => v).map(([k, v]) => `${k.replace('_', ' ')} ${k === 'commit' ? v.slice(0, 10) : v}`).join('; ')}`,
    'Frame size': 'The network sees the frames at their own size, as in training, where the three adaptations act; unsamflow predict may enlarge small pictures, so that its errors differ from these.',
    Homographies: `at most ${settings.regions} segments; occlusion by ${rule}; inliers within ${settings.threshold} px; RANSAC seed ${settings.seed}. Flow is stored in steps of 1/16 px.`,
    'Page data': `unsamflow ${made.unsamflow}, commit ${String(made.commit).slice(0, 10)}${dirty}; PyTorch ${made.torch}; ${made.device}`,
    'Made again by': 'unsamflow run interactive page=docs/interactive --folder results/interactive',
  };
  find('#origins').innerHTML = `<dl>${Object.entries(rows).map(([k, v]) => `<dt>${k}</dt><dd>${k === 'Made again by' ? `<code>${text(v)}</code>` : text(v)}</dd>`).join('')}</dl>`;
}

// ---------------------------------------------------------------- state

function readHash() {
  const pairs = [...new URLSearchParams(location.hash.slice(1))], first = pairs.length ? pairs[0][0] : '';
  section = document.getElementById(first)?.tagName === 'SECTION' ? first : '';
  Object.assign(state, {...DEFAULTS, scene: String(data.scenes[0].number), weights: Object.keys(data.weights)[0]});
  for (const [key, value] of pairs) if (key in DEFAULTS && isKnown(key, value)) state[key] = value;
}

function isKnown(key, value) {  // what an address asks for must be there
  if (key === 'scene') return data.scenes.some(s => String(s.number) === value);
  if (key === 'weights') return value in data.weights;
  const controls = all(`[name="${key}"]`);
  if (controls.some(c => c.type === 'radio') && key !== 'segment') return controls.some(c => c.value === value);
  if (key === 'arrows') return true;
  if (key === 'x' || key === 'y') return Number.isInteger(+value) && +value >= 0 && +value < (key === 'x' ? W : H);
  return value !== '' && Number.isFinite(+value);
}

function writeHash() {
  const first = {scene: String(data.scenes[0].number), weights: Object.keys(data.weights)[0]};
  const parts = Object.entries(state).filter(([k, v]) => v !== (first[k] ?? DEFAULTS[k])).map(([k, v]) => `${k}=${encodeURIComponent(v)}`);
  try { history.replaceState(null, '', `#${[section, ...parts].join('&')}`); } catch { /* some browsers refuse this for local files */ }
}

function setControls() {
  for (const control of all('input[name], select[name]')) {
    if (control.type === 'radio') control.checked = control.value === state[control.name];
    else if (control.type === 'checkbox') control.checked = Boolean(state[control.name]);
    else control.value = state[control.name];
  }
}

async function choose(changes) {
  if ('scene' in changes || 'weights' in changes) hovered = hoveredPixel = hoveredFeature = null;
  if ('scene' in changes) Object.assign(changes, {segment: '', x: '', y: '', ...changes});
  Object.assign(state, changes);
  if (!decoded.has(state.scene)) decoded.set(state.scene, decode(data.scenes.find(s => String(s.number) === state.scene)));
  scene = await decoded.get(state.scene);
  if (state.segment !== '' && !scene.edges.has(+state.segment)) state.segment = '';
  update();
  writeHash();
}

function update() {
  tellRegions();
  setControls();
  setLegend('frames', legendFor(state.layer));
  setLegend('hg', legendFor(state.show));
  setLegend('aug', legendFor(state.pasted));
  for (const tell of [tellProbe, tellErrors, tellVerdict, tellObjects, tellFeature, tellOrigins]) tell();
  for (const draw of stages) draw();
}

// ---------------------------------------------------------------- pointers and keys

function follow(canvas, {hover = () => {}, tap = () => {}, drag = () => {}, leave = () => {}}) {
  let start = null;
  const at = event => {
    const box = canvas.getBoundingClientRect(), clip = (value, limit) => Math.min(Math.max(Math.floor(value * limit), 0), limit - 1);
    return [clip((event.clientX - box.left) / box.width, W), clip((event.clientY - box.top) / box.height, H), (event.clientX - box.left) / box.width * 100];
  };
  canvas.addEventListener('pointerdown', event => { start = {x: event.clientX, moved: false}; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener('pointermove', event => {
    if (start && (start.moved || Math.abs(event.clientX - start.x) > 4)) { start.moved = true; drag(Math.min(Math.max(at(event)[2], 0), 100)); }
    else if (!start && event.pointerType === 'mouse') hover(...at(event));
  });
  canvas.addEventListener('pointerup', event => { if (start && !start.moved) tap(...at(event)); start = null; });
  canvas.addEventListener('pointercancel', () => { start = null; });
  canvas.addEventListener('pointerleave', event => { if (event.pointerType === 'mouse') leave(); });
}

const slideTo = name => share => choose({[name]: String(Math.round(share))});

function listenToFrames(canvas) {
  const point = pixel => { hoveredPixel = pixel; tellProbe(); stages[0](); };
  follow(canvas, {hover: (x, y) => point([x, y]), tap: (x, y) => choose({x: String(x), y: String(y)}), drag: slideTo('at'), leave: () => point(null)});
  canvas.addEventListener('keydown', event => {
    const way = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    if (event.key === 'Escape') choose({x: '', y: ''});
    if (!way) return;
    event.preventDefault();
    hoveredPixel = null;
    const stride = event.shiftKey ? 10 : 1, from = state.x === '' ? [W >> 1, H >> 1] : [+state.x, +state.y];
    const [x, y] = from.map((value, axis) => Math.min(Math.max(value + stride * way[axis], 0), [W, H][axis] - 1));
    choose({x: String(x), y: String(y)});
  });
}

function segmentAt(x, y) {  // in frame 2: the segment that the homography takes there, if any
  if (state.show !== 'frame2') return scene.labels[y * W + x];
  return chosen() ?? null;
}

function listenToSegments(canvas) {
  const point = label => { if (label !== hovered) { hovered = label; tellVerdict(); stages[1](); } };
  follow(canvas, {
    hover: (x, y) => { if (state.show !== 'frame2') point(segmentAt(x, y)); },
    tap: (x, y) => {
      const label = segmentAt(x, y), same = state.segment === String(label);
      hovered = null;
      if (label !== null) choose({segment: same ? '' : String(label)});
    },
    leave: () => point(null),
  });
  canvas.addEventListener('keydown', event => {
    if (event.key === 'Escape') choose({segment: ''});
    const way = {ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1}[event.key];
    if (!way) return;
    event.preventDefault();
    const rank = s => s.rank ?? 1000 + s.label, order = [...network().segments].sort((a, b) => rank(a) - rank(b)).map(s => s.label);
    const next = (order.indexOf(state.segment === '' ? NaN : +state.segment) + way + order.length) % order.length;
    hovered = null;
    choose({segment: String(order[state.segment === '' ? 0 : next])});
  });
}

function listenToFeatures(canvas) {
  const point = place => { if (place !== hoveredFeature) { hoveredFeature = place; tellFeature(); stages[3](); } };
  const index = (x, y) => {
    const size = scene.features.labels.length, width = Math.round(Math.sqrt(size * W / H));
    return Math.floor(y / H * size / width) * width + Math.floor(x / W * width);
  };
  follow(canvas, {hover: (x, y) => point(index(x, y)), tap: (x, y) => point(index(x, y)), drag: slideTo('pooled'), leave: () => point(null)});
}

function listen() {
  document.addEventListener('input', event => {
    const control = event.target;
    if (!(control.name in DEFAULTS)) return;
    hovered = null;
    section = control.closest('section')?.id ?? section;
    choose({[control.name]: control.type === 'checkbox' ? (control.checked ? '1' : '') : control.value});
  });
  addEventListener('hashchange', () => { readHash(); choose({}).then(() => document.getElementById(section)?.scrollIntoView()); });
  setInterval(() => {  // 1.5 changes a second: slow enough for everyone
    if (state.compare !== 'flicker' || document.hidden) return;
    flickered = !flickered;
    stages[0]();
  }, 667);
}

// ---------------------------------------------------------------- start

function build() {
  const option = (name, value, inner) => `<label><input type="radio" name="${name}" value="${text(value)}"><span>${inner}</span></label>`;
  find('.scenes').insertAdjacentHTML('beforeend', data.scenes.map(s => option('scene', s.number, `<img src="${s.images[0]}" alt="">${number(s.number)}`)).join(''));
  find('#weights').innerHTML = Object.keys(data.weights).map(name => `<option>${text(name)}</option>`).join('');
  find('.channels').insertAdjacentHTML('beforeend', data.scenes[0].features.channels.map((_, i) => option('channel', i, '')).join(''));
  find('.many').textContent = {1: 'one', 2: 'two', 3: 'three', 4: 'four', 5: 'five', 6: 'six'}[data.settings.regions] ?? data.settings.regions;
}

function check() {  // does what is drawn agree with what the library measured?
  const off = [];
  for (const [name, own] of Object.entries(scene.estimates)) for (const s of own.segments) if (s.rank) {
    const inside = i => scene.labels[i] === s.label, mean = values => values.reduce((sum, v, i) => sum + (inside(i) ? v : 0), 0) / s.pixels;
    [own.error, own.remaining].forEach((values, k) => off.push(Math.abs(mean(values) - s.error[k])));
  }
  document.documentElement.dataset.check = Math.max(0, ...off).toFixed(3);  // largest difference, pixels
}

async function start() {
  data = window.interactiveData;
  if (!data) throw new Error('data.js is missing: unsamflow run interactive page=docs/interactive --folder results/interactive');
  if (!window.DecompressionStream) throw new Error('This browser is too old to unpack the data: any browser since 2023 will do.');
  ({width: W, height: H} = data.settings);
  N = W * H;
  build();
  readHash();
  await choose({});
  listenToFrames(stage('frames', drawFrames));
  listenToSegments(stage('hg', drawSegments));
  follow(stage('aug', drawPasted), {drag: slideTo('before')});
  listenToFeatures(stage('mf', drawFeature));
  listen();
  check();
  document.getElementById(section)?.scrollIntoView();
  document.documentElement.dataset.ready = '1';
}

start().catch(error => {
  const box = find('#problem');
  box.textContent = error.message;
  box.hidden = false;
});
