"""Two-hop questions out of the corpus: links from a passage to its bridge, facts about the bridge."""
