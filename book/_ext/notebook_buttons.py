"""Launch buttons on notebooks alone: Colab cannot open a page that is Markdown."""


def only_on_notebooks(app, pagename, templatename, context, doctree):
    if not pagename.startswith("notebooks/"):
        buttons = context.get("header_buttons", [])
        context["header_buttons"] = [b for b in buttons if b.get("label") != "launch-buttons"]


def setup(app):
    app.connect("html-page-context", only_on_notebooks, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
