// What a page holds, as lists of what is wrong with it. Runs in the page.
async () => {
  const all = (selector) => [...document.querySelectorAll(`article ${selector}`)];
  const name = (element) =>
    `${element.tagName.toLowerCase()}.${element.className}`.slice(0, 80);

  // Images load when they come near; ask for each of them now.
  const images = all("img");
  for (const image of images) image.loading = "eager";
  await Promise.all(images.map((image) => image.decode().catch(() => null)));

  const ready = (video) =>
    video.readyState > 0 ||
    new Promise((resolve) => {
      video.addEventListener("loadedmetadata", () => resolve(true));
      video.addEventListener("error", () => resolve(false));
      setTimeout(() => resolve(false), 5000);
      video.load();
    });
  const videos = all("video");
  const playable = await Promise.all(videos.map(ready));

  // An element sticks out if nothing between it and the page scrolls or hides.
  const width = document.documentElement.clientWidth;
  const sticks = (element) => {
    if (element.getBoundingClientRect().right <= width + 1) return false;
    for (let box = element.parentElement; box; box = box.parentElement) {
      if (box.tagName === "BODY") return true;
      if (getComputedStyle(box).overflowX !== "visible") return false;
    }
    return true;
  };
  const scrolls = document.documentElement.scrollWidth > width + 1;

  const found = [...document.querySelectorAll("[id]")].map((element) => element.id);
  const folded = (solution) =>
    solution.classList.contains("toggle-hidden") ||
    solution.closest("details:not([open])") !== null;

  return {
    broken_images: images.filter((i) => !i.naturalWidth).map((i) => i.src),
    images_without_alt: images.filter((i) => !i.alt.trim()).map((i) => i.src),
    broken_videos: videos.filter((_, i) => !playable[i]).map(name),
    videos_without_poster: videos.filter((v) => !v.poster).map(name),
    untypeset: all(".math")
      .filter((m) => !m.querySelector("mjx-container"))
      .map((m) => m.textContent.slice(0, 80)),
    math_errors: all('mjx-merror, mjx-mtext[style*="color: red"]').map((e) => e.textContent),
    too_wide: scrolls
      ? ["page", ...[...document.querySelectorAll("body *")].filter(sticks).map(name)]
      : [],
    open_solutions: all(".solution").filter((s) => !folded(s)).map((s) => s.id),
    duplicate_ids: found.filter(
      (id, i) =>
        // Sphinx-proof and sphinx-exercise name the inside of every box alike.
        !id.endsWith("-content") &&
        found.indexOf(id) !== i &&
        document.getElementById(id).closest("article"),
    ),
  };
};
