"""The scripts' edge: the only place with a command line and a console.

command                       a command line that explains itself; a user's errors as a sentence
reporter                      lines and bars of long work on a console
tables                        results of training, conversion and preparation
report                        the results of an evaluation
"""
