"""Models and data sets by hub id.

download                      a repository's files at a revision, from the cache where they are there
client                        patience: retries, back-off, Retry-After
files                         a partial file goes on where it stopped
"""
