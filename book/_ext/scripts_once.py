"""Every script once a page: Jupyter Book adds what is in _static to what extensions add
themselves, so MathJax started twice. And only where a page has formulas.
"""


def once(app, pagename, templatename, context, doctree):
    formulas = 'class="math' in (context.get("body") or "")
    seen = set()
    kept = []
    for script in context.get("script_files", []):
        attributes = getattr(script, "attributes", {})
        name = attributes.get("body") or str(getattr(script, "filename", None) or script)
        if name not in seen and (formulas or "mathjax" not in name):
            kept.append(script)
        seen.add(name)
    context["script_files"] = kept


def setup(app):
    app.connect("html-page-context", once, priority=950)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
