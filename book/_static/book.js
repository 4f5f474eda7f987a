// What scrolls by itself on a narrow screen, a formula mostly, can be reached by keyboard.
window.addEventListener("load", async () => {
  await window.MathJax?.startup.promise;
  for (const box of document.querySelectorAll('mjx-container[display="true"]')) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
});
