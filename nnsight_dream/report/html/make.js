// an element with its attributes ("text" is its text, "on" a listener) and what is inside; nothing for null
const make = (tag, given = {}, ...inside) => {
  const node = document.createElement(tag);
  for (const [k, v] of Object.entries(given)) k === "text" ? node.textContent = v : k === "on" ? node.addEventListener(...v) : node.setAttribute(k, v);
  node.append(...inside.filter(child => child !== null && child !== undefined));
  return node;
};
