// Airflow shows this page in a frame. It may neither leave the frame nor download, so the window around it does.
const around = window.parent === window ? null : window.parent;

const theme = () => document.documentElement.classList.toggle(
  "dark",
  around
    ? around.document.documentElement.classList.contains("dark")
    : matchMedia("(prefers-color-scheme: dark)").matches,
);
theme();
if (around) {
  new MutationObserver(theme).observe(around.document.documentElement, { attributes: true, attributeFilter: ["class"] });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a");
    const leaves = link && (link.hasAttribute("data-airflow") || link.origin !== location.origin);
    if (!leaves) return;
    event.preventDefault();
    const own = around.document.createElement("a");
    own.href = link.href;
    if (link.origin !== location.origin) {
      own.target = "_blank";
      own.rel = "noopener noreferrer";
    }
    own.click();
  });
}
