"""The report: plain data of an evaluation as a page and as tables; computes nothing that is not in
it.

page                          report.html, self-contained
contrasts                     does telepathy help? sentence, table and sections of a comparison
trials                        stress, robustness, the adapter's sweep
figures, forest               drawings, as SVG
tables                        sentences and tables, as HTML; cli/report.py prints them
schema                        JSON Schema of sigma_eval_report.json
"""
