//! The readers on the data of real kernels, and on data of no kernel.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use ipvs_guard_common::layout::{Field, FieldId};
use proptest::prelude::*;
use tempfile::TempDir;

use super::{
    btf::{Btf, BtfError, FieldProblem},
    encode::{ARRAY, CONST, Encoder, FLAG, PTR, TYPEDEF, UNION, VOLATILE, elf},
    layout::{FileProblem, LayoutError, Part, Resolved, Source, resolve},
    symbols::{Hook, Host, ModuleState, ModuleWatch, SymbolError, Symbols},
    table,
};

const KERNELS: [&str; 7] = [
    "5.10.223", "6.1.176", "6.1.192", "6.12.107", "6.18.15", "7.2.12", "7.3.4",
];
const WITH_MODULE_BTF: &[&str] = &[
    "6.1.176", "6.1.192", "6.12.107", "6.18.15", "7.2.12", "7.3.4",
];

fn data(kernel: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/kernel/testdata")
        .join(kernel)
}

fn blob(kernel: &str, name: &str) -> Vec<u8> {
    fs::read(data(kernel).join(name)).unwrap()
}

fn source(system: &Path, release: &str, file: Option<&Path>) -> Source {
    Source {
        file: file.map(Path::to_owned),
        system: system.to_owned(),
        release: release.to_owned(),
    }
}

fn resolved(kernel: &str) -> Resolved {
    resolve(&source(&data(kernel), kernel, None)).unwrap()
}

fn field(offset: u16, width: u16) -> Field {
    Field { offset, width }
}

mod real_kernels {
    use super::*;

    /// As the whole BTF of these kernels has them.
    #[test]
    fn each_has_its_fields_where_its_own_tools_show_them() {
        use FieldId::*;
        let expected: &[(FieldId, [(u16, u16); 7])] = &[
            (
                ConnAf,
                [
                    (22, 2),
                    (22, 2),
                    (22, 2),
                    (22, 2),
                    (22, 2),
                    (21, 1),
                    (21, 1),
                ],
            ),
            (
                ConnDaf,
                [
                    (78, 2),
                    (78, 2),
                    (78, 2),
                    (78, 2),
                    (78, 2),
                    (45, 1),
                    (45, 1),
                ],
            ),
            (
                ConnCport,
                [
                    (16, 2),
                    (16, 2),
                    (16, 2),
                    (16, 2),
                    (16, 2),
                    (22, 2),
                    (22, 2),
                ],
            ),
            (
                ConnVport,
                [
                    (20, 2),
                    (20, 2),
                    (20, 2),
                    (20, 2),
                    (20, 2),
                    (148, 2),
                    (148, 2),
                ],
            ),
            (
                ConnVaddr,
                [
                    (40, 16),
                    (40, 16),
                    (40, 16),
                    (40, 16),
                    (40, 16),
                    (112, 16),
                    (112, 16),
                ],
            ),
            (
                ConnState,
                [
                    (148, 2),
                    (148, 2),
                    (148, 2),
                    (148, 2),
                    (148, 2),
                    (90, 2),
                    (90, 2),
                ],
            ),
            (
                ConnDest,
                [
                    (184, 8),
                    (184, 8),
                    (184, 8),
                    (184, 8),
                    (184, 8),
                    (48, 8),
                    (48, 8),
                ],
            ),
            (
                ConnInPkts,
                [
                    (192, 4),
                    (192, 4),
                    (192, 4),
                    (192, 4),
                    (192, 4),
                    (248, 4),
                    (248, 4),
                ],
            ),
            (
                DestFlags,
                [
                    (52, 4),
                    (52, 4),
                    (64, 8),
                    (64, 8),
                    (52, 4),
                    (64, 8),
                    (64, 8),
                ],
            ),
            (
                DestSvc,
                [
                    (392, 8),
                    (392, 8),
                    (408, 8),
                    (416, 8),
                    (400, 8),
                    (416, 8),
                    (416, 8),
                ],
            ),
            (
                SvcPort,
                [
                    (56, 2),
                    (56, 2),
                    (56, 2),
                    (56, 2),
                    (56, 2),
                    (48, 2),
                    (48, 2),
                ],
            ),
            (UdestWeight, [(24, 4); 7]),
            (
                IpvsNet,
                [
                    (2160, 8),
                    (2160, 8),
                    (2160, 8),
                    (2024, 8),
                    (2024, 8),
                    (2344, 8),
                    (2344, 8),
                ],
            ),
            (
                NetInum,
                [
                    (136, 4),
                    (144, 4),
                    (144, 4),
                    (136, 4),
                    (176, 4),
                    (280, 4),
                    (280, 4),
                ],
            ),
            (
                SkbHead,
                [
                    (192, 8),
                    (200, 8),
                    (200, 8),
                    (200, 8),
                    (200, 8),
                    (200, 8),
                    (200, 8),
                ],
            ),
            (
                SkbNetworkHeader,
                [
                    (180, 2),
                    (184, 2),
                    (184, 2),
                    (184, 2),
                    (184, 2),
                    (184, 2),
                    (184, 2),
                ],
            ),
        ];
        for (n, kernel) in KERNELS.iter().enumerate() {
            let layout = resolved(kernel).layout;
            for (id, places) in expected {
                let (offset, width) = places[n];
                assert_eq!(layout.field(*id), field(offset, width), "{kernel} {id:?}");
            }
            for &id in FieldId::ALL {
                assert_ne!(layout.field(id).width, 0, "{kernel} {id:?}");
            }
        }
    }

    #[test]
    fn the_table_agrees_with_the_btf_of_the_kernels_it_names() {
        for (kernel, release, row) in [
            ("6.1.176", "6.1.0", 0),
            ("6.1.192", "6.1.0", 1),
            ("6.18.15", "6.18.15", 0),
            ("6.12.107", "6.12.107", 1),
        ] {
            let layout = resolved(kernel).layout;
            // On other architectures the table is empty.
            let Some(row) = table::candidates(release).get(row) else {
                continue;
            };
            for &id in FieldId::ALL {
                if let Some(field) = row.field(id) {
                    assert_eq!(field, layout.field(id), "{kernel} {id:?}");
                }
            }
        }
    }

    #[test]
    fn one_without_module_btf_is_served_by_the_table() {
        if !cfg!(target_arch = "x86_64") {
            return;
        }
        let found = resolved("5.10.223");
        assert!(matches!(found.origin.ip_vs, Part::Table(_)));
        assert_eq!(found.alternatives.len(), 1);
        assert_ne!(found.alternatives[0].layout, found.layout);
        assert!(found.origin.to_string().contains("the built-in table"));
        assert!(resolved("6.1.176").alternatives.is_empty());

        let unknown = resolve(&source(&data("5.10.223"), "5.4.0", None)).unwrap_err();
        assert!(matches!(unknown, LayoutError::Missing { .. }), "{unknown}");
        assert!(unknown.to_string().contains("--btf FILE"), "{unknown}");
    }

    #[test]
    fn a_module_of_another_kernel_is_refused() {
        for (kernel, other) in [("6.1.176", "7.2.12"), ("7.2.12", "6.1.176")] {
            let base = Arc::new(Btf::parse(blob(other, "vmlinux"), None).unwrap());
            let error = Btf::parse(blob(kernel, "ip_vs"), Some(base)).unwrap_err();
            assert!(matches!(error, BtfError::OtherKernel), "{error}");
        }
    }

    #[test]
    fn every_hook_is_found_in_every_kernel() {
        for kernel in KERNELS {
            let symbols = Symbols::from_reader(blob(kernel, "kallsyms").as_slice()).unwrap();
            for &hook in Hook::ALL {
                let names = symbols.resolve(hook).unwrap();
                let groups = usize::from(hook == Hook::In && kernel == "5.10.223");
                assert_eq!(names, hook.candidates()[groups], "{kernel} {hook:?}");
            }
            assert!(!symbols.built_in());
        }
    }
}

mod users_file {
    use super::*;

    fn write(folder: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn may_be_raw_or_elf_whole_or_split() {
        let folder = TempDir::new().unwrap();
        for kernel in WITH_MODULE_BTF {
            let wanted = resolved(kernel).layout;
            let (vmlinux, module) = (blob(kernel, "vmlinux"), blob(kernel, "ip_vs"));
            let split = write(&folder, "split", &module);
            let ko = write(
                &folder,
                "ip_vs.ko",
                &elf(&[(".text", b"x"), (".BTF", &module)]),
            );
            for file in [&split, &ko] {
                let found = resolve(&source(&data(kernel), kernel, Some(file))).unwrap();
                assert_eq!(found.layout, wanted);
                assert_eq!(found.origin.ip_vs, Part::File(file.clone()));
            }
            // A kernel that offers nothing, and a file that has all of it.
            let apart = elf(&[(".BTF.base", &vmlinux), (".BTF", &module)]);
            let apart = write(&folder, "apart.ko", &apart);
            let nowhere = folder.path().join("nowhere");
            let found = resolve(&source(&nowhere, kernel, Some(&apart))).unwrap();
            assert_eq!(found.layout, wanted);
            let error = resolve(&source(&nowhere, kernel, Some(&ko))).unwrap_err();
            assert!(
                matches!(
                    &error,
                    LayoutError::BadFile {
                        reason: FileProblem::Unreadable(BtfError::NeedsBase),
                        ..
                    }
                ),
                "{error}"
            );
        }
    }

    #[test]
    fn that_cannot_serve_is_refused_in_one_line() {
        let folder = TempDir::new().unwrap();
        let good = blob("6.1.176", "ip_vs");
        let elf_good = elf(&[(".BTF", &good)]);
        let cases: &[(&str, &[u8], &str)] = &[
            ("empty", b"", "neither BTF nor an ELF"),
            ("text", b"hello, world\n", "neither BTF nor an ELF"),
            ("cut", &good[..good.len() / 2], "cut short"),
            ("header", &good[..10], "cut short"),
            ("elf-cut", &elf_good[..70], "ELF"),
            ("elf-none", &elf(&[(".text", b"")]), "no .BTF section"),
            ("zstd", b"\x28\xb5\x2f\xfd....", "decompress"),
            ("xz", b"\xfd7zXZ\0...", "decompress"),
            ("gzip", b"\x1f\x8b......", "decompress"),
            ("big", b"\xeb\x9f\x01\0....", "byte order"),
            ("version", b"\x9f\xeb\x07\0....", "version 7"),
            (
                "kernel-only",
                &blob("6.1.176", "vmlinux"),
                "no struct ip_vs_conn",
            ),
            ("other", &blob("7.2.12", "ip_vs"), "another kernel"),
        ];
        for (name, bytes, words) in cases {
            let path = write(&folder, name, bytes);
            let error = resolve(&source(&data("6.1.176"), "6.1.0", Some(&path))).unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, LayoutError::BadFile { .. }), "{text}");
            assert!(text.contains(words), "{name}: {text}");
            assert!(text.contains(path.to_str().unwrap()), "{text}");
            assert!(!text.contains('\n'), "{text}");
        }
        for path in [folder.path().join("absent"), folder.path().to_owned()] {
            let error = resolve(&source(&data("6.1.176"), "6.1.0", Some(&path))).unwrap_err();
            assert!(matches!(error, LayoutError::BadFile { .. }), "{error}");
        }
    }

    #[test]
    fn that_lacks_a_field_names_it() {
        let mut kernel = Encoder::kernel();
        let int = kernel.int(4);
        kernel.structure("ip_vs_conn", 4, &[("cport", int, 0)]);
        kernel.structure("sk_buff", 4, &[("len", int, 0)]);
        let folder = TempDir::new().unwrap();
        let path = write(&folder, "short", &kernel.bytes());
        let error = resolve(&source(folder.path(), "6.1", Some(&path))).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("struct ip_vs_conn, member af: no such member"),
            "{text}"
        );
    }

    #[test]
    fn with_ipvs_built_in_serves_alone() {
        let folder = TempDir::new().unwrap();
        let wanted = resolved("6.1.176").layout;
        // What the system offers is a kernel that has IPVS in it.
        let mut kernel = Encoder::kernel();
        for &id in FieldId::ALL {
            kernel.int(wanted.field(id).width.into());
        }
        let mut structures: Vec<&str> = FieldId::ALL.iter().map(|id| id.structure()).collect();
        structures.sort_unstable();
        structures.dedup();
        for name in structures {
            let members: Vec<_> = FieldId::ALL
                .iter()
                .enumerate()
                .filter(|(_, id)| id.structure() == name && **id != FieldId::NetInum)
                .map(|(n, id)| {
                    (
                        id.path(),
                        n as u32 + 1,
                        u32::from(wanted.field(*id).offset) * 8,
                    )
                })
                .collect();
            if name == "net" {
                let inum = FieldId::NetInum as u32 + 1;
                let ns = kernel.structure("ns_common", 8, &[("inum", inum, 32)]);
                let at = u32::from(wanted.field(FieldId::NetInum).offset) * 8 - 32;
                kernel.structure(name, 4096, &[("ns", ns, at)]);
            } else {
                kernel.structure(name, 4096, &members);
            }
        }
        write(&folder, "vmlinux", &kernel.bytes());
        let found = resolve(&source(folder.path(), "6.1.0", None)).unwrap();
        assert_eq!(found.layout, wanted);
        assert_eq!(found.origin.ip_vs, found.origin.kernel);
    }

    #[test]
    fn absent_and_no_btf_in_the_kernel_is_a_missing_feature() {
        let folder = TempDir::new().unwrap();
        let error = resolve(&source(folder.path(), "6.1.0", None)).unwrap_err();
        assert!(matches!(error, LayoutError::Missing { .. }), "{error}");
        write(&folder, "vmlinux", b"damaged");
        let error = resolve(&source(folder.path(), "6.1.0", None)).unwrap_err();
        assert!(matches!(error, LayoutError::Missing { .. }), "{error}");
    }
}

mod members {
    use super::*;

    fn problem(btf: &Encoder, path: &str) -> FieldProblem {
        let btf = Btf::parse(btf.bytes(), None).unwrap();
        btf.field("s", path).unwrap_err().problem
    }

    #[test]
    fn are_found_through_names_qualifiers_and_nesting() {
        let mut btf = Encoder::kernel();
        let int = btf.int(4);
        let byte = btf.int(1);
        let volatile = btf.record("", VOLATILE, 0, int, &[]);
        let constant = btf.record("", CONST, 0, volatile, &[]);
        let typedef = btf.record("u32_t", TYPEDEF, 0, constant, &[]);
        let pointer = btf.record("", PTR, 0, 0, &[]);
        let address = btf.array(byte, 16);
        let counter = btf.structure("atomic_t", 4, &[("counter", int, 0)]);
        let inner = btf.structure("", 8, &[("a", typedef, 0), ("b", counter, 32)]);
        let middle = btf.composite(UNION, "", 8, &[("whole", pointer, 0), ("", inner, 0)]);
        let wrapped = btf.record("", CONST, 0, middle, &[]);
        let named = btf.structure("pair", 24, &[("", wrapped, 64), ("ip", address, 64)]);
        btf.structure(
            "s",
            40,
            &[("first", byte, 0), ("", wrapped, 64), ("pair", named, 128)],
        );
        let btf = Btf::parse(btf.bytes(), None).unwrap();
        for (path, offset, width) in [
            ("first", 0, 1),
            ("whole", 8, 8),
            ("a", 8, 4),
            ("b", 12, 4),
            ("b.counter", 12, 4),
            ("pair.a", 24, 4),
            ("pair.ip", 24, 16),
        ] {
            assert_eq!(btf.field("s", path), Ok(field(offset, width)), "{path}");
        }
        for path in ["", "c", "pair.", ".a", "a.b", "whole.a", "fir", "firsts"] {
            let error = btf.field("s", path).unwrap_err();
            assert_eq!(error.problem, FieldProblem::NoMember, "{path}");
        }
        assert_eq!(
            btf.field("absent", "a").unwrap_err().to_string(),
            "struct absent, member a: no such structure"
        );
    }

    #[test]
    fn of_a_module_lie_in_its_own_structures_or_the_kernels() {
        let mut kernel = Encoder::kernel();
        let int = kernel.int(4);
        kernel.structure("both", 4, &[("x", int, 0)]);
        kernel.structure("below", 4, &[("x", int, 0)]);
        let mut module = Encoder::module(&kernel);
        module.structure("both", 16, &[("x", int, 64)]);
        let kernel = Arc::new(Btf::parse(kernel.bytes(), None).unwrap());
        let module = Btf::parse(module.bytes(), Some(kernel)).unwrap();
        assert_eq!(module.field("both", "x"), Ok(field(8, 4)));
        assert_eq!(module.field("below", "x"), Ok(field(0, 4)));
        assert!(module.has("below") && !module.has("beyond"));
    }

    #[test]
    fn that_cannot_be_read_are_refused() {
        let mut btf = Encoder::kernel();
        let int = btf.int(4);
        let old_bitfield = btf.record("int", 1, 0, 4, &[3]);
        let odd = btf.array(int, 3);
        let none = btf.array(int, 0);
        let declared = btf.record("gone", 7, 0, 0, &[]);
        btf.composite(
            4 | FLAG,
            "s",
            64,
            &[
                ("bits", int, 3 << 24),
                ("unaligned", int, 3),
                ("old", old_bitfield, 32),
                ("odd", odd, 64),
                ("none", none, 64),
                ("void", 0, 64),
                ("declared", declared, 64),
                ("behind", int, 64 * 8 - 8),
            ],
        );
        for (path, expected) in [
            ("bits", FieldProblem::Bitfield),
            ("unaligned", FieldProblem::Bitfield),
            ("old", FieldProblem::Bitfield),
            ("odd", FieldProblem::Width(12)),
            ("none", FieldProblem::Width(0)),
            ("void", FieldProblem::NoSize),
            ("declared", FieldProblem::NoSize),
            ("behind", FieldProblem::Outside),
        ] {
            assert_eq!(problem(&btf, path), expected, "{path}");
        }
        let mut far = Encoder::kernel();
        let int = far.int(4);
        far.structure("s", 1 << 20, &[("x", int, 70_000 * 8)]);
        assert_eq!(problem(&far, "x"), FieldProblem::Outside);
    }

    #[test]
    fn of_structures_that_differ_are_ambiguous() {
        let mut btf = Encoder::kernel();
        let int = btf.int(4);
        btf.structure("s", 16, &[("x", int, 0), ("y", int, 32)]);
        btf.structure("s", 16, &[("x", int, 0), ("y", int, 64)]);
        let parsed = Btf::parse(btf.bytes(), None).unwrap();
        assert_eq!(parsed.field("s", "x"), Ok(field(0, 4)));
        assert_eq!(problem(&btf, "y"), FieldProblem::Ambiguous);
        for _ in 0..100 {
            btf.structure("s", 16, &[("x", int, 0)]);
        }
        assert_eq!(problem(&btf, "x"), FieldProblem::Ambiguous);
    }
}

mod hostile {
    use super::*;

    fn ask(btf: &Encoder) -> FieldProblem {
        let btf = Btf::parse(btf.bytes(), None).unwrap();
        btf.field("s", "x").unwrap_err().problem
    }

    #[test]
    fn circles_end() {
        let mut typedefs = Encoder::kernel();
        typedefs.record("a", TYPEDEF, 0, 2, &[]);
        typedefs.record("b", TYPEDEF, 0, 1, &[]);
        typedefs.structure("s", 8, &[("x", 1, 0)]);
        assert_eq!(ask(&typedefs), FieldProblem::TooDeep);

        let mut arrays = Encoder::kernel();
        arrays.record("", ARRAY, 0, 0, &[1, 1, 1]);
        arrays.structure("s", 8, &[("x", 1, 0)]);
        assert_eq!(ask(&arrays), FieldProblem::TooDeep);

        let mut selfish = Encoder::kernel();
        selfish.structure("s", 8, &[("", 1, 0)]);
        assert_eq!(ask(&selfish), FieldProblem::TooDeep);

        // Each level has many of itself: 60,000 to the power of the depth.
        let mut wide = Encoder::kernel();
        wide.structure("s", 8, &vec![("", 1, 0); 60_000]);
        assert_eq!(ask(&wide), FieldProblem::TooDeep);

        let mut anonymous = Encoder::kernel();
        anonymous.record("a", TYPEDEF, 0, 1, &[]);
        anonymous.structure("s", 8, &[("", 1, 0)]);
        assert_eq!(ask(&anonymous), FieldProblem::TooDeep);
    }

    #[test]
    fn sizes_do_not_wrap() {
        let mut btf = Encoder::kernel();
        let int = btf.int(4);
        let mut array = int;
        for _ in 0..4 {
            array = btf.array(array, u32::MAX);
        }
        btf.structure("s", u32::MAX, &[("x", array, u32::MAX)]);
        assert!(matches!(
            ask(&btf),
            FieldProblem::Outside | FieldProblem::Bitfield
        ));
    }

    #[test]
    fn records_are_checked() {
        let damaged = |build: &dyn Fn(&mut Encoder)| {
            let mut btf = Encoder::kernel();
            build(&mut btf);
            let error = Btf::parse(btf.bytes(), None).unwrap_err();
            assert!(matches!(error, BtfError::Type { id: 1, .. }), "{error}");
        };
        damaged(&|btf| {
            btf.record("s", 4, 1000, 8, &[]);
        });
        damaged(&|btf| {
            btf.record("s", 0, 0, 8, &[]);
        });
        damaged(&|btf| {
            btf.record("s", 77, 0, 8, &[]);
        });
        damaged(&|btf| {
            btf.structure("s", 8, &[("x", 9, 0)]);
        });
        damaged(&|btf| {
            btf.record("", PTR, 0, 2, &[]);
        });
        damaged(&|btf| {
            btf.record("s", 4, 1, 8, &[1 << 20, 0, 0]);
        });
    }

    #[test]
    fn kinds_of_a_later_kernel_are_skipped_if_it_describes_them() {
        let mut btf = Encoder::kernel();
        btf.record("new", 99, 2, 8, &[7, 1, 2]);
        let int = btf.int(4);
        btf.structure("s", 8, &[("x", int, 32)]);
        assert!(Btf::parse(btf.bytes(), None).is_err());
        btf.describe(99, 4, 4);
        let btf = Btf::parse(btf.bytes(), None).unwrap();
        assert_eq!(btf.field("s", "x"), Ok(field(4, 4)));
    }

    #[test]
    fn every_cut_of_a_blob_is_an_error() {
        let whole = blob("6.1.176", "vmlinux");
        for end in 0..whole.len() {
            assert!(Btf::parse(whole[..end].to_vec(), None).is_err(), "{end}");
        }
        assert!(Btf::parse(whole, None).is_ok());
    }

    fn ask_everything(btf: &Btf) {
        for &id in FieldId::ALL {
            if let Ok(field) = btf.field(id.structure(), id.path()) {
                assert!(matches!(field.width, 1 | 2 | 4 | 8 | 16));
            }
        }
    }

    fn real() -> impl Strategy<Value = (Vec<u8>, Option<Vec<u8>>)> {
        (0..WITH_MODULE_BTF.len(), any::<bool>()).prop_map(|(n, module)| {
            let kernel = blob(WITH_MODULE_BTF[n], "vmlinux");
            if module {
                (blob(WITH_MODULE_BTF[n], "ip_vs"), Some(kernel))
            } else {
                (kernel, None)
            }
        })
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(
            mut bytes in prop::collection::vec(any::<u8>(), 0..2048),
            start in prop::sample::select(vec![&b""[..], b"\x9f\xeb\x01\0\x18\0\0\0", b"\x7fELF\x02\x01\x01\0"]),
        ) {
            bytes.splice(0..0, start.iter().copied());
            if let Ok(btf) = Btf::from_bytes(&bytes, || None) {
                ask_everything(&btf);
            }
        }

        #[test]
        fn damaged_blobs_are_survived(
            (mut bytes, base) in real(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..16),
            cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
        ) {
            for (at, value) in damage {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            let base = base.map(|base| Arc::new(Btf::parse(base, None).unwrap()));
            if let Ok(btf) = Btf::from_bytes(&bytes, || base.clone()) {
                ask_everything(&btf);
            }
            let elf = elf(&[(".BTF", &bytes)]);
            prop_assert_eq!(
                Btf::from_bytes(&elf, || base.clone()).is_ok(),
                Btf::from_bytes(&bytes, || base).is_ok()
            );
        }

        #[test]
        fn damaged_elf_files_are_survived(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let mut bytes = elf(&[(".BTF", &blob("6.1.176", "vmlinux")[..])]);
            let headers = bytes.len() - 4 * 64;
            for (at, value) in damage {
                // The header, or the section headers: the rest is BTF.
                let at = at.index(64 + 4 * 64);
                bytes[if at < 64 { at } else { headers + at - 64 }] = value;
            }
            if let Ok(btf) = Btf::from_bytes(&bytes, || None) {
                ask_everything(&btf);
            }
        }

        #[test]
        fn any_list_of_symbols_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
            let symbols = Symbols::from_reader(bytes.as_slice()).unwrap();
            for &hook in Hook::ALL {
                prop_assert!(symbols.resolve(hook).is_err());
            }
        }
    }
}

mod symbols {
    use super::*;

    fn list(lines: &[&str]) -> Symbols {
        Symbols::from_reader(lines.join("\n").as_bytes()).unwrap()
    }

    #[test]
    fn of_a_kernel_with_ipvs_built_in_have_no_module() {
        let symbols = list(&[
            "ffffffff81000000 T ip_vs_conn_expire_now",
            "ffffffff81000010 t tcp_state_transition",
        ]);
        assert!(symbols.built_in());
        assert_eq!(
            symbols.resolve(Hook::Commit),
            Ok(vec!["tcp_state_transition"])
        );
    }

    #[test]
    fn that_the_compiler_changed_are_never_used() {
        let symbols = list(&[
            "0 t tcp_state_transition.isra.0\t[ip_vs]",
            "0 t __ip_vs_update_dest.constprop.0\t[ip_vs]",
            "0 t __ip_vs_del_dest.part.0\t[ip_vs]",
            "0 t ip_vs_in_hook.cold\t[ip_vs]",
        ]);
        for hook in [Hook::Commit, Hook::ConfigUpdate, Hook::Delete, Hook::In] {
            let error = symbols.resolve(hook).unwrap_err();
            let SymbolError::Missing { changed, .. } = &error else {
                panic!("{error}");
            };
            assert!(changed.is_some(), "{error}");
        }
        let nothing = list(&[]).resolve(Hook::In).unwrap_err().to_string();
        assert!(nothing.ends_with("is ip_vs loaded?"), "{nothing}");
    }

    #[test]
    fn of_one_name_in_two_modules_are_ambiguous() {
        let symbols = list(&[
            "0 t tcp_state_transition\t[ip_vs]",
            "0 t tcp_state_transition\t[another]",
        ]);
        assert_eq!(
            symbols.resolve(Hook::Commit),
            Err(SymbolError::Ambiguous {
                name: "tcp_state_transition",
                count: 2
            })
        );
        let elsewhere = list(&["0 t tcp_state_transition\t[another]"]);
        assert!(matches!(
            elsewhere.resolve(Hook::Commit),
            Err(SymbolError::Missing { .. })
        ));
    }

    #[test]
    fn that_are_no_functions_or_other_names_do_not_count() {
        let symbols = list(&[
            "0 d tcp_state_transition\t[ip_vs]",
            "0 t __pfx_tcp_state_transition\t[ip_vs]",
            "0 t tcp_state_transitions\t[ip_vs]",
            "0 t",
            "",
        ]);
        assert!(symbols.resolve(Hook::Commit).is_err());
    }

    #[test]
    fn of_a_kernel_without_ipv6_are_those_of_ipv4() {
        let symbols = list(&[
            "0 t ip_vs_remote_request4\t[ip_vs]",
            "0 t ip_vs_local_request4\t[ip_vs]",
        ]);
        assert_eq!(
            symbols.resolve(Hook::In),
            Ok(vec!["ip_vs_remote_request4", "ip_vs_local_request4"])
        );
    }
}

mod module_state {
    use super::*;

    struct Fake {
        folder: TempDir,
        watch: ModuleWatch,
    }

    impl Fake {
        fn new() -> Self {
            let folder = TempDir::new().unwrap();
            let host = Host {
                proc: folder.path().join("proc"),
                sys: folder.path().join("sys"),
            };
            fs::create_dir_all(host.sys.join("module")).unwrap();
            fs::create_dir_all(&host.proc).unwrap();
            Self {
                watch: ModuleWatch::new(host),
                folder,
            }
        }

        fn path(&self, path: &str) -> PathBuf {
            self.folder.path().join(path)
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn state(&mut self) -> ModuleState {
            self.watch.state().unwrap()
        }
    }

    #[test]
    fn follows_a_module_in_and_out() {
        let mut fake = Fake::new();
        assert_eq!(fake.state(), ModuleState::Absent);
        fake.write("sys/module/ip_vs/initstate", "coming\n");
        assert_eq!(fake.state(), ModuleState::Changing);
        fake.write("sys/module/ip_vs/initstate", "live\n");
        let first = fake.state();
        assert!(matches!(first, ModuleState::Live { .. }));
        assert_eq!(fake.state(), first);
        fake.write("sys/module/ip_vs/initstate", "going\n");
        assert_eq!(fake.state(), ModuleState::Changing);
        // Back before anybody looked: another file of the same name.
        fake.write("sys/module/ip_vs/next", "live\n");
        fs::rename(
            fake.path("sys/module/ip_vs/next"),
            fake.path("sys/module/ip_vs/initstate"),
        )
        .unwrap();
        let second = fake.state();
        assert!(matches!(second, ModuleState::Live { .. }));
        assert_ne!(first, second);
        fs::remove_dir_all(fake.path("sys/module/ip_vs")).unwrap();
        assert_eq!(fake.state(), ModuleState::Absent);
    }

    #[test]
    fn knows_ipvs_built_in_from_a_module_on_its_way() {
        let mut fake = Fake::new();
        fake.write("sys/module/ip_vs/parameters/conn_tab_bits", "12\n");
        fake.write("proc/kallsyms", "0 T ip_vs_conn_expire_now\t[ip_vs]\n");
        assert_eq!(fake.state(), ModuleState::Changing);

        let mut fake = Fake::new();
        fake.write("sys/module/ip_vs/parameters/conn_tab_bits", "12\n");
        fake.write("proc/kallsyms", "0 T ip_vs_conn_expire_now\n");
        assert_eq!(fake.state(), ModuleState::BuiltIn);
    }

    #[test]
    fn does_without_sysfs() {
        let mut fake = Fake::new();
        fs::remove_dir(fake.path("sys/module")).unwrap();
        for (line, expected) in [
            ("ip_vs_rr 16384 0 - Live 0x0\n", ModuleState::Absent),
            (
                "ip_vs 180224 1 ip_vs_rr, Live 0x0\n",
                ModuleState::Live { generation: 0 },
            ),
            ("ip_vs 180224 0 - Unloading 0x0\n", ModuleState::Changing),
            ("ip_vs 180224 0 - Loading 0x0\n", ModuleState::Changing),
        ] {
            fake.write("proc/modules", line);
            assert_eq!(fake.state(), expected, "{line}");
        }
    }
}
