"""The reader study of Section V-E as a tool: build a study, let readers read it, score their answers."""
