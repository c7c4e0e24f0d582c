"""Token-to-factor rationales: which expert took which word of a sentence."""
