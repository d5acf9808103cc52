"""Models and data sets by hub id.

download                      a repository's files at a revision, from the cache where they are
                              there
client                        patience: retries, back-off, Retry-After
transfer                      a partial file goes on where it stopped
listing                       what a commit holds, so that some of it is not taken for all
scrub                         no token and no signed address in a message
"""
