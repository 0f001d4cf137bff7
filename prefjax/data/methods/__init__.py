"""Records -> records by methods of the literature: noise, sampling, pairing, selection, relabelling, geometry.

A method is a pure function of records and options. For every incoming record it yields what became of it, in
whatever order it likes: the records made of it and the findings, so that `report.collect` can account for each.
`registry` names them, reads sequences such as "flip_labels(rate=0.2) | subset(share=0.5)", and applies them.
"""
