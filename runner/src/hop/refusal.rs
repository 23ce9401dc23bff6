//! Why another user could not be become, read from what sudo, sudo-rs, doas and su say in the C locale.

use sortie_protocol::ErrorCode;
use sortie_protocol::message::{Become, BecomeMethod};

use crate::failure::Failure;
use crate::tool::last_lines;

/// `details.reason`, and the same in plain words.
pub(super) type Reason = (&'static str, &'static str);

pub(super) const WRONG_PASSWORD: Reason = ("wrong_password", "the password is wrong");
pub(super) const PASSWORD_REQUIRED: Reason = (
    "password_required",
    "a password is required and none was given (--ask-become-pass), unless a rule allows /bin/sh without one",
);
pub(super) const MISSING_PROGRAM: Reason = ("missing_program", "the host has no such program");
pub(super) const NEEDS_TERMINAL: Reason =
    ("needs_terminal", "a terminal is required, and the host gives none");
pub(super) const TIMED_OUT: Reason = ("timeout", "it did not come to an end");
pub(super) const NOT_STARTED: Reason = ("not_started", "the runner could not be started as that user");
const REFUSED: Reason = ("refused", "it refused");
const NOT_ALLOWED: Reason = (
    "not_allowed",
    "the rules do not allow this user to run /bin/sh as that one, which is what it takes; a list of other programs is not enough",
);
const NOT_IN_SUDOERS: Reason = ("not_in_sudoers", "no rule of sudoers allows this");
const UNKNOWN_USER: Reason = ("unknown_user", "there is no such user on the host");
const EXPIRED: Reason = ("account_expired", "an account or password is expired or locked");
const NO_PRIVILEGES: Reason = (
    "no_privileges",
    "the program cannot change users here: it is not set-user-ID root, or the file system or process forbids that",
);
const NO_SHELL: Reason = ("no_shell", "that user has no shell to log in with");

/// Parts of what is said, the more telling first.
const SAID: &[(&str, Reason)] = &[
    ("must have a tty", NEEDS_TERMINAL),
    ("a tty is required", NEEDS_TERMINAL),
    ("must be run from a terminal", NEEDS_TERMINAL),
    ("not in the sudoers", NOT_IN_SUDOERS),
    ("m afraid I can", NOT_IN_SUDOERS),
    ("may not run sudo", NOT_IN_SUDOERS),
    ("not allowed to execute", NOT_ALLOWED),
    ("not permitted", NOT_ALLOWED),
    ("ccount validation failure", EXPIRED),
    ("expired", EXPIRED),
    ("account is locked", EXPIRED),
    ("not currently available", NO_SHELL),
    ("currently not available", NO_SHELL),
    ("nknown user", UNKNOWN_USER),
    ("does not exist", UNKNOWN_USER),
    ("' not found", UNKNOWN_USER),
    ("unknown id", UNKNOWN_USER),
    ("setuid", NO_PRIVILEGES),
    ("effective uid", NO_PRIVILEGES),
    ("no new privileges", NO_PRIVILEGES),
    ("assword is required", PASSWORD_REQUIRED),
    ("uthentication is required", PASSWORD_REQUIRED),
    ("uthentication required", PASSWORD_REQUIRED),
    ("uthorization required", PASSWORD_REQUIRED),
    ("incorrect password", WRONG_PASSWORD),
    ("ncorrect authentication", WRONG_PASSWORD),
    ("uthentication fail", WRONG_PASSWORD),
    ("try again", WRONG_PASSWORD),
];

pub(super) fn program(method: BecomeMethod) -> &'static str {
    match method {
        BecomeMethod::Sudo => "sudo",
        BecomeMethod::Doas => "doas",
        BecomeMethod::Su => "su",
    }
}

/// What the words mean.
pub(super) fn read(said: &[u8]) -> Reason {
    let text = String::from_utf8_lossy(said);
    SAID.iter().find(|(part, _)| text.contains(part)).map_or(REFUSED, |(_, reason)| *reason)
}

/// `said` is shown where the reason alone does not say it all; the password never is.
pub(super) fn failure(whom: &Become, (reason, words): Reason, said: &[u8]) -> Failure {
    let program = program(whom.method);
    let mut message = format!("cannot become {:?} by {program}: {words}; nothing was run", whom.user);
    let mut said = last_lines(said, 3);
    if let Some(password) =
        whom.password.as_ref().map(sortie_protocol::Secret::expose).filter(|p| !p.is_empty())
    {
        said = said.replace(password, "[secret]");
    }
    // sudo repeats what it was to run, which is long and ours.
    if !said.is_empty() && reason != NOT_ALLOWED.0 {
        message.push_str(&format!(". {program} said: {said}"));
    }
    Failure::new(ErrorCode::BecomeFailed, message).detail("reason", reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_programs_say_is_understood() {
        for (said, reason) in [
            ("sudo: sorry, you must have a tty to run sudo\n", "needs_terminal"),
            ("deploy is not in the sudoers file.\n", "not_in_sudoers"),
            ("deploy is not in the sudoers file.  This incident will be reported.\n", "not_in_sudoers"),
            ("Sorry, user deploy is not allowed to execute '/bin/sh -c x' as root on h.\n", "not_allowed"),
            ("Sorry, user deploy may not run sudo on h.\n", "not_in_sudoers"),
            ("sudo: I'm sorry deploy. I'm afraid I can't do that\n", "not_in_sudoers"),
            (
                "sudo: unknown user: ghost\nsudo: error initializing audit plugin sudoers_audit\n",
                "unknown_user",
            ),
            ("sudo: user 'ghost' not found\n", "unknown_user"),
            (
                "su: user ghost does not exist or the user entry does not contain all the required fields\n",
                "unknown_user",
            ),
            ("doas: unknown user\n", "unknown_user"),
            ("sudo: a password is required\n", "password_required"),
            ("sudo: interactive authentication is required\n", "password_required"),
            ("doas: Authorization required\n", "password_required"),
            ("doas: Authentication required\n", "password_required"),
            ("doas: Authentication failed\n", "wrong_password"),
            ("doas: Operation not permitted\n", "not_allowed"),
            ("su: Authentication failure\n", "wrong_password"),
            ("sudo: 1 incorrect password attempt\n", "wrong_password"),
            (
                "sudo: Account expired or PAM config lacks an \"account\" section for sudo, contact your system administrator\n",
                "account_expired",
            ),
            ("sudo: account validation failure, is your account locked?\n", "account_expired"),
            ("This account is currently not available.\n", "no_shell"),
            ("sudo: /usr/bin/sudo must be owned by uid 0 and have the setuid bit set\n", "no_privileges"),
            (
                "sudo: The \"no new privileges\" flag is set, which prevents sudo from running as root.\n",
                "no_privileges",
            ),
            ("gibberish\n", "refused"),
        ] {
            assert_eq!(read(said.as_bytes()).0, reason, "{said}");
        }
    }

    #[test]
    fn a_failure_shows_what_was_said_but_never_the_password() {
        let password = Some(sortie_protocol::Secret::new("hunter2".into()));
        let whom = Become { user: "root".into(), method: BecomeMethod::Sudo, password };
        let failure = failure(&whom, REFUSED, b"odd: hunter2\x1b[31m\n");
        assert!(failure.message.contains("odd: [secret][31m"), "{}", failure.message);
        assert_eq!(failure.details["reason"], "refused");
        assert!(!format!("{failure:?}").contains("hunter2"));
    }
}
