//! Words that only serve grammar. In a small store they are rare by chance, and would outweigh
//! the words that a question is about.

/// English, since that is what the stems are for too; sorted.
const WORDS: [&str; 117] = [
    "a", "about", "after", "all", "also", "am", "an", "and", "any", "are", "as", "at", "be",
    "because", "been", "before", "being", "between", "both", "but", "by", "can", "could", "did",
    "do", "does", "doing", "during", "each", "few", "for", "from", "had", "has", "have", "having",
    "he", "her", "here", "hers", "him", "his", "how", "i", "if", "in", "into", "is", "it", "its",
    "just", "me", "more", "most", "my", "no", "nor", "not", "of", "off", "on", "once", "one",
    "only", "or", "other", "our", "out", "over", "own", "s", "same", "she", "should", "so", "some",
    "such", "t", "than", "that", "the", "their", "them", "then", "there", "these", "they", "this",
    "those", "through", "to", "too", "under", "until", "up", "use", "used", "very", "was", "we",
    "were", "what", "when", "where", "which", "while", "who", "whom", "whose", "why", "will",
    "with", "without", "would", "you", "your", "yours",
];

/// Whether `word`, in lower case, only serves grammar.
pub(super) fn is_stop_word(word: &str) -> bool {
    WORDS.binary_search(&word).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted_and_found() {
        assert!(WORDS.is_sorted());
        assert!(WORDS.iter().all(|word| is_stop_word(word)));
        assert!(!is_stop_word("river") && !is_stop_word("The"));
    }
}
