#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sortie_runner::fuzz::sshd(data));
