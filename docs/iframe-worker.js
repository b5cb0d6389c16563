// Two additions to the search. Material's `offline` plugin loads a script from another server unless one of this name is
// given.

// In a site that is opened from a folder, browsers refuse a worker's script, so it runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      this.frame = new Promise((resolve) => {
        frame.onload = () => {
          const inside = frame.contentWindow;
          // What the script posts is for the page, not for its own frame.
          inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
          resolve(inside);
        };
      });
      frame.srcdoc = `<script src="${new URL(url, location)}"></script>`;
      document.body.append(frame);
    }

    postMessage(data) {
      this.frame.then((inside) => inside.dispatchEvent(new MessageEvent("message", { data })));
    }
  };
}

// Options are found as they are written. In a query, a leading hyphen would exclude a word.
const post = Worker.prototype.postMessage;
Worker.prototype.postMessage = function ({ type, data }) {
  const asked = typeof data === "string" ? data.replace(/(^|\s)-+/g, "$1") : data;
  post.call(this, { type, data: asked });
};
