//! Maps made by hand, as another build may have made them: with BTF that says what they hold.

use std::{ffi::CString, io, os::unix::ffi::OsStrExt, path::Path};

use aya::maps::MapType;

/// A member of a struct: its name and the bytes of its unsigned number.
pub type Member = (&'static str, usize);

/// The numbers of a key and of a value.
pub type Entry<'a> = (&'a [u64], &'a [u64]);

/// A map with keys and values of these members.
pub struct ByHand<'a> {
    pub name: &'a str,
    pub map_type: MapType,
    pub key: &'a [Member],
    pub value: &'a [Member],
    pub entries: u32,
    pub has_btf: bool,
}

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_BTF_LOAD: libc::c_long = 18;

impl ByHand<'_> {
    /// Makes it, fills it with entries of numbers, and pins it.
    pub fn pin(&self, path: &Path, entries: &[Entry<'_>]) {
        let (btf, types) = self.btf();
        let mut attr = [0_u8; 128];
        let mut set = |at: usize, word: u32| attr[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        let size = |members: &[Member]| members.iter().map(|(_, size)| *size as u32).sum::<u32>();
        let head = [self.map_type as u32, size(self.key), size(self.value), self.entries];
        for (at, word) in head.into_iter().enumerate() {
            set(4 * at, word);
        }
        if self.has_btf {
            let mut load = [btf.as_ptr() as u64, 0, btf.len() as u64, 0];
            set(48, bpf(BPF_BTF_LOAD, &mut load) as u32);
            set(52, types.0);
            set(56, types.1);
        }
        let name = self.name.as_bytes();
        let name = &name[..name.len().min(15)];
        attr[28..28 + name.len()].copy_from_slice(name);
        let fd = bpf(BPF_MAP_CREATE, &mut attr);
        for (key, value) in entries {
            let (key, value) = (bytes(self.key, key), bytes(self.value, value));
            bpf(BPF_MAP_UPDATE_ELEM, &mut [fd as u64, key.as_ptr() as u64, value.as_ptr() as u64, 0]);
        }
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        bpf(BPF_OBJ_PIN, &mut [path.as_ptr() as u64, fd as u64]);
    }

    /// The BTF and the numbers of the key's and the value's type in it:
    /// https://docs.kernel.org/bpf/btf.html.
    fn btf(&self) -> (Vec<u8>, (u32, u32)) {
        let (mut strings, mut types) = (vec![0_u8], Vec::<u32>::new());
        let mut string = |text: &str| {
            let at = strings.len() as u32;
            strings.extend(text.bytes().chain([0]));
            at
        };
        // Types 1 to 4: integers of 1, 2, 4 and 8 bytes.
        for size in [1, 2, 4, 8] {
            types.extend([string(&format!("u{}", 8 * size)), 1 << 24, size, 8 * size]);
        }
        let mut number = 4;
        let mut add = |members: &[Member]| {
            number += 1;
            let size: usize = members.iter().map(|(_, size)| size).sum();
            types.extend([string("entry"), 4 << 24 | members.len() as u32, size as u32]);
            let mut offset = 0;
            for (name, size) in members {
                types.extend([string(name), 1 + size.ilog2(), 8 * offset]);
                offset += *size as u32;
            }
            number
        };
        let numbers = match self.key {
            // The key of an array is a number.
            [("", _)] => (3, add(self.value)),
            _ => (add(self.key), add(self.value)),
        };
        let header = [0x0001_eb9f_u32, 24, 0, 4 * types.len() as u32, 4 * types.len() as u32, strings.len() as u32];
        let words = header.into_iter().chain(types).flat_map(u32::to_ne_bytes);
        (words.chain(strings).collect(), numbers)
    }
}

fn bytes(members: &[Member], numbers: &[u64]) -> Vec<u8> {
    assert_eq!(members.len(), numbers.len());
    members.iter().zip(numbers).flat_map(|((_, size), number)| number.to_le_bytes()[..*size].to_vec()).collect()
}

fn bpf<T>(command: libc::c_long, attr: &mut T) -> i32 {
    // SAFETY: what the callers give is laid out as the kernel wants it for `command`, and lives as
    // long as the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    assert!(result >= 0, "bpf({command}): {}", io::Error::last_os_error());
    result as i32
}
