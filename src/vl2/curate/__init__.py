"""What makes records better and shows them: filters, jobs that ask a model, previews, counts, the build of a stage."""
