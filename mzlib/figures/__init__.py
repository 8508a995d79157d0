"""One function per artefact of the paper (`table1` …, `fig2` …) and the project's own; tidy tables in, axes out."""
from mzlib.figures.linearization import (eq5, fig8, fig8_table, gradient_descent, layer_table,
                                         layers, lfc_against_lgc, projection, spectrum, training_loss)
from mzlib.figures.paper import (paper, paper_errors, paper_fig2, paper_metrics, paper_summary, paper_table1, paper_table2)
from mzlib.figures.plots import contact_sheet, fig1, fig2, fig4, fig6, fig7, gains, kernel, score_against_accuracy
from mzlib.figures.selectors import (BASELINES, agreement, by_task, cost_against_quality, few_images, few_images_of_the_others,
                                     few_images_table, half_tau, half_zoos, null_table, over_images, regret_over_cost, z_scores)
from mzlib.figures.style import GREY, MULTI_DOMAIN, display_name, selector_order, use_style
from mzlib.figures.tables import download, fig1_errors, provenance_line, show, table1, table2, table3, table4

__all__ = ["BASELINES", "GREY", "MULTI_DOMAIN", "agreement", "by_task", "contact_sheet", "cost_against_quality", "display_name",
           "download", "eq5", "few_images", "few_images_of_the_others", "few_images_table", "fig1", "fig1_errors", "fig2", "fig4", "fig6",
           "fig7", "fig8", "fig8_table", "gains", "gradient_descent", "half_tau", "half_zoos", "kernel", "layer_table",
           "layers", "lfc_against_lgc", "null_table", "over_images", "paper", "paper_errors", "paper_fig2", "paper_metrics",
           "paper_summary", "paper_table1", "paper_table2", "projection", "provenance_line", "regret_over_cost", "score_against_accuracy", "selector_order", "show",
           "spectrum", "table1", "table2", "table3", "table4",
           "training_loss", "use_style", "z_scores"]
