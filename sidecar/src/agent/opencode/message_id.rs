//! Ids in OpenCode's own format, for prompts: OpenCode orders messages by them, so ours must ascend with its own.

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A message id: `msg_`, the low 48 bits of `millis * 4096 + 1` in hexadecimal, and 14 characters made of `random`.
#[must_use]
pub fn message_id(millis: u64, random: [u8; 14]) -> String {
    let clock = millis.wrapping_mul(4096).wrapping_add(1) & 0xffff_ffff_ffff;
    let tail = random.iter().map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]));
    format!("msg_{clock:012x}{}", tail.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_the_form_of_opencodes_own_and_ascends() {
        // Recorded: a message made at 1795336690626 was called msg_20267dbc2001XJtc0Art7AX8tf.
        assert!(message_id(1_795_336_690_626, [0; 14]).starts_with("msg_20267dbc2001"));
        assert_eq!(message_id(1, [255; 14]).len(), "msg_20267dbc2001XJtc0Art7AX8tf".len());
        assert!(message_id(1_795_336_690_626, [61; 14]) < message_id(1_795_336_690_627, [0; 14]));
    }
}
