"use strict";
const album = JSON.parse(document.getElementById("album").textContent);
const find = (id) => document.getElementById(id);

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// Comparing: a row for each chosen side, a tile for each prompt and seed that both sides have.
const chosen = {scene: 0, concept: 0, left: "", right: new Set()};

function picture(index, side, shot, kind) {
  const image = element("img", {src: album.images[index], className: kind, alt: `${side}: ${shot.prompt || "no prompt"}, seed ${shot.seed}`});
  image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth < 256));
  return image;
}

function tile(shot, left, right) {
  const frame = element("div", {className: "frame"}, picture(shot.images[left], left, shot, "before"), picture(shot.images[right], right, shot, "after"));
  const range = element("input", {type: "range", min: 0, max: 100, value: find("all").value});
  range.setAttribute("aria-label", `${left} on the left, ${right} on the right: ${shot.prompt}, seed ${shot.seed}`);
  const cut = () => frame.style.setProperty("--cut", `${range.value}%`);
  range.addEventListener("input", cut);
  cut();
  frame.append(element("div", {className: "seam"}), range);
  const made = element("figure", {className: "tile"}, frame, element("figcaption", {textContent: `${shot.prompt || "no prompt"} · seed ${shot.seed}`}));
  if (shot.covered) {
    made.classList.add("covered");
    const cover = element("button", {type: "button", className: "cover", textContent: "covered: show"});
    cover.setAttribute("aria-label", `Covered image: ${shot.prompt}, seed ${shot.seed}. Show it`);
    frame.append(cover);
  }
  return made;
}

function draw() {
  const scene = album.scenes[chosen.scene], concept = scene.concepts[chosen.concept];
  const rows = [];
  for (const side of scene.sides.filter((name) => chosen.right.has(name) && name !== chosen.left)) {
    const shots = concept.shots.filter((shot) => chosen.left in shot.images && side in shot.images);
    if (!shots.length) continue;
    const tiles = element("div", {className: "tiles"}, ...shots.map((shot) => tile(shot, chosen.left, side)));
    rows.push(element("div", {className: "row"}, element("h3", {textContent: `${chosen.left} ⟷ ${side}`}), tiles));
  }
  find("rows").replaceChildren(...(rows.length ? rows : [element("p", {className: "note", textContent: "No images of this concept on both sides: choose others above."})]));
}

function chooseConcept() {
  const scene = album.scenes[chosen.scene];
  const group = (label, erased) => {
    const options = scene.concepts.map((concept, i) => [concept, i]).filter(([concept]) => concept.erased === erased);
    return options.length ? [element("optgroup", {label}, ...options.map(([concept, i]) => element("option", {value: i, textContent: concept.name || "no prompt"})))] : [];
  };
  find("concept").replaceChildren(...group("should be gone", true), ...group("should have stayed", false));
  chosen.concept = Number(find("concept").value);
}

function chooseScene() {
  const scene = album.scenes[chosen.scene];
  chooseConcept();
  chosen.left = scene.sides[0];
  chosen.right = new Set(scene.sides.slice(1, 4));
  find("left").replaceChildren(...scene.sides.map((name) => element("option", {value: name, textContent: name})));
  find("sides").replaceChildren(...scene.sides.map((name) => {
    const box = element("input", {type: "checkbox", value: name, checked: chosen.right.has(name)});
    box.addEventListener("change", () => { chosen.right[box.checked ? "add" : "delete"](name); draw(); });
    return element("label", {}, box, name);
  }));
  draw();
}

if (find("viewer")) {
  find("scene").replaceChildren(...album.scenes.map((scene, i) => element("option", {value: i, textContent: scene.name})));
  find("scene").parentElement.hidden = album.scenes.length < 2;
  find("scene").addEventListener("change", (event) => { chosen.scene = Number(event.target.value); chooseScene(); });
  find("concept").addEventListener("change", (event) => { chosen.concept = Number(event.target.value); draw(); });
  find("left").addEventListener("change", (event) => { chosen.left = event.target.value; draw(); });
  find("all").addEventListener("input", (event) => {
    for (const range of document.querySelectorAll(".frame input")) { range.value = event.target.value; range.dispatchEvent(new Event("input")); }
  });
  chooseScene();
}

// What is covered stays so until it is asked for.
document.addEventListener("click", (event) => {
  const cover = event.target.closest(".cover");
  if (!cover) return;
  const whole = cover.closest(".covered");
  whole.classList.remove("covered");
  cover.remove();
  whole.querySelector("input")?.focus();
});
