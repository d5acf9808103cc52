"""Sigma, the paper as a folder: one file a workspace, one for each of its formulas.

vision, language, action      the three workspaces (3.1, 3.2, 3.3)
trajectory, layers            the DiT of the trajectory branch; what workspaces are built from
model, config                 the order of the two passes, the scan over windows; sizes and choices
losses, curriculum            TRAF and TSAC (4.2)
adapter                       how far to trust a residual, window by window (4.3)
"""
