"""All that a run left becomes a report, a model card and mails.

In: the records of a run. Out: `reports/<run>/…`, mails to addresses that the settings allow.
Holds: what came from outside is shown as text; a mail is sent once, or its failure is recorded.
"""
