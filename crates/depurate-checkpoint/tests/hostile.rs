//! Forged, cut and damaged files: an error, never a panic, and never more memory than the file can justify.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;

use depurate_checkpoint::{
    CheckpointError, Limits, PipelineIndex, ShardIndex, Weights, parse_json, plan,
    rename_deprecated_attention,
};
use proptest::prelude::*;

/// Counts what each thread holds, so that tests do not see each other.
struct Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator unchanged; the counters neither allocate nor have destructors.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.set(HELD.get().saturating_add(layout.size()));
        PEAK.set(PEAK.get().max(HELD.get()));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.set(HELD.get().saturating_sub(layout.size()));
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `f` and gives the most bytes that it held beyond what was held before.
fn peak<T>(f: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = f();
    (result, PEAK.get() - before)
}

/// Most memory that reading `len` bytes of file may take, apart from the file itself.
fn bound(len: usize) -> usize {
    64 * 1024 + 40 * len
}

fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// Three tensors of 24 + 8 + 8 bytes.
fn sound() -> Vec<u8> {
    file(
        r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"F16","shape":[4],"data_offsets":[24,32]},"c":{"dtype":"F64","shape":[],"data_offsets":[32,40]}}"#,
        &[0x3c; 40],
    )
}

/// Opens, and reads everything that can be read, within the bound.
fn read_all(bytes: Vec<u8>, limits: &Limits) -> Result<Weights, CheckpointError> {
    let len = bytes.len();
    let (result, peak) = peak(|| {
        let weights = Weights::from_bytes(Path::new("hostile.safetensors"), bytes, limits)?;
        let mut elements = 0;
        for info in weights.infos().filter(|i| i.dtype.is_float()) {
            let values = weights.read_f32(&info.name)?;
            assert_eq!(values.len(), info.elements());
            elements += values.len();
            weights.non_finite(&info.name)?;
        }
        assert!(elements <= len / 2);
        plan(&[("a".into(), vec![2, 3])], &weights, &|_| None);
        Ok(weights)
    });
    assert!(peak <= bound(len), "{peak} bytes for a file of {len}");
    result
}

fn error_of(header: &str, data: &[u8]) -> CheckpointError {
    read_all(file(header, data), &Limits::default()).unwrap_err()
}

#[test]
fn the_counter_counts() {
    let ((), held) = peak(|| drop(vec![1_u8; 12_345]));
    assert_eq!(held, 12_345);
}

#[test]
fn many_small_tensors_stay_within_the_bound() {
    let rows: Vec<String> = (0..50_000)
        .map(|i| {
            format!(
                r#""t{i}":{{"dtype":"F16","shape":[1],"data_offsets":[{},{}]}}"#,
                2 * i,
                2 * i + 2
            )
        })
        .collect();
    let weights = read_all(
        file(&format!("{{{}}}", rows.join(",")), &[0; 100_000]),
        &Limits::default(),
    );
    assert_eq!(weights.unwrap().infos().count(), 50_000);
}

#[test]
fn the_sound_file_is_read() {
    let weights = read_all(sound(), &Limits::default()).unwrap();
    assert_eq!(
        weights.infos().map(|i| i.name.as_str()).collect::<Vec<_>>(),
        ["a", "b", "c"]
    );
    assert_eq!(weights.get("a").unwrap().shape, [2, 3]);
    assert_eq!(
        weights.read_f32("a").unwrap(),
        [f32::from_bits(0x3c3c3c3c); 6]
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_cut_file_is_an_error(at in 0..sound().len()) {
        prop_assert!(read_all(sound()[..at].to_vec(), &Limits::default()).is_err());
    }

    #[test]
    fn a_longer_file_is_an_error(more in prop::collection::vec(any::<u8>(), 1..64)) {
        prop_assert!(read_all([sound(), more].concat(), &Limits::default()).is_err());
    }

    #[test]
    fn flipped_bits_never_panic(flips in prop::collection::vec((0..sound().len(), 0..8u8), 1..6)) {
        let mut bytes = sound();
        for (at, bit) in flips {
            bytes[at] ^= 1 << bit;
        }
        let _ = read_all(bytes, &Limits::default());
    }

    #[test]
    fn a_wrong_header_length_is_an_error(length in any::<u64>()) {
        let mut bytes = sound();
        prop_assume!(bytes[..8] != length.to_le_bytes());
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        prop_assert!(read_all(bytes, &Limits::default()).is_err());
    }

    #[test]
    fn wrong_offsets_and_shapes_are_errors(
        shape in prop::collection::vec(prop_oneof![0..9u64, any::<u64>()], 0..5),
        start in prop_oneof![0..41u64, any::<u64>()],
        end in prop_oneof![0..41u64, any::<u64>()],
    ) {
        let header = format!(
            r#"{{"a":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{start},{end}]}},"b":{{"dtype":"U8","shape":[16],"data_offsets":[24,40]}}}}"#
        );
        let product = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
        let right = start == 0 && end == 24 && product == Some(6);
        prop_assert_eq!(read_all(file(&header, &[0; 40]), &Limits::default()).is_ok(), right);
    }

    #[test]
    fn arbitrary_headers_never_panic(header in ".{0,200}", data in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = read_all(file(&header, &data), &Limits::default());
    }

    #[test]
    fn arbitrary_json_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let (path, limits) = (Path::new("hostile.json"), Limits::default());
        let _ = parse_json(path, &bytes, &limits);
        let _ = ShardIndex::parse(path, &bytes, &limits);
        let _ = PipelineIndex::parse(path, &bytes, &limits);
    }
}

#[test]
fn overlapping_tensors_are_refused() {
    let error = error_of(
        r#"{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[8],"data_offsets":[4,12]}}"#,
        &[0; 12],
    );
    assert!(matches!(error, CheckpointError::Header { .. }), "{error}");
}

#[test]
fn a_name_that_stands_twice_is_refused() {
    let error = error_of(
        r#"{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"\u0061":{"dtype":"U8","shape":[8],"data_offsets":[8,16]}}"#,
        &[0; 16],
    );
    assert!(
        matches!(&error, CheckpointError::DuplicateTensor { tensor, .. } if tensor == "a"),
        "{error}"
    );
}

#[test]
fn offsets_whose_sum_wraps_around_are_refused() {
    // Eight tensors of 2^61 - 1 bytes: each fits in 64 bits, and the end of the last wraps to a small number when the header
    // is added to it.
    let size = (1u64 << 61) - 1;
    let rows: Vec<String> = (0..8)
        .map(|i| {
            let (start, end) = (i * size, (i + 1) * size);
            format!(r#""t{i}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{start},{end}]}}"#)
        })
        .collect();
    let error = error_of(&format!("{{{}}}", rows.join(",")), &[0; 64]);
    assert!(
        matches!(error, CheckpointError::OutOfRange { .. }),
        "{error}"
    );
}

#[test]
fn a_stated_header_of_many_gigabytes_costs_nothing() {
    for length in [99_000_000_u64, 100_000_001, 1 << 40, u64::MAX] {
        let mut bytes = sound();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        let error = read_all(bytes, &Limits::default()).unwrap_err();
        let refused = matches!(
            error,
            CheckpointError::Truncated { .. } | CheckpointError::TooLarge { .. }
        );
        assert!(refused, "{error}");
    }
}

#[test]
fn headers_that_unfold_in_memory_are_refused_within_the_bound() {
    let dimensions = format!(
        r#"{{"a":{{"dtype":"U8","shape":[{}1],"data_offsets":[0,1]}}}}"#,
        "1,".repeat(500_000)
    );
    let unknown_field = format!(
        r#"{{"a":{{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":[{}0]}}}}"#,
        "0,".repeat(500_000)
    );
    let metadata: Vec<String> = (0..100_000).map(|i| format!(r#""{i}":"""#)).collect();
    let metadata = format!(r#"{{"__metadata__":{{{}}}}}"#, metadata.join(","));
    for header in [dimensions, unknown_field, metadata] {
        let bytes = file(&header, &[0]);
        let (result, peak) =
            peak(|| Weights::from_bytes(Path::new("bomb.safetensors"), bytes, &Limits::default()));
        assert!(
            matches!(result, Err(CheckpointError::HeaderJson { .. })),
            "{result:?}"
        );
        assert!(peak < 64 * 1024, "{peak}");
    }
}

#[test]
fn too_many_tensors_are_refused() {
    let rows: Vec<String> = (0..101)
        .map(|i| format!(r#""t{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#))
        .collect();
    let bytes = file(&format!("{{{}}}", rows.join(",")), &[]);
    let limits = Limits {
        tensors: 100,
        ..Limits::default()
    };
    let error = read_all(bytes.clone(), &limits).unwrap_err();
    assert!(
        matches!(
            error,
            CheckpointError::TooLarge {
                option: "tensors",
                ..
            }
        ),
        "{error}"
    );
    assert!(
        read_all(
            bytes,
            &Limits {
                tensors: 101,
                ..Limits::default()
            }
        )
        .is_ok()
    );
}

#[test]
fn a_name_that_steers_the_terminal_is_refused() {
    let error = error_of(
        "{\"a\\u001b[2J\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
        &[0],
    );
    assert!(
        matches!(error, CheckpointError::HeaderJson { .. }),
        "{error}"
    );
}

#[test]
fn projections_stored_as_convolutions_fit_and_other_weights_do_not() {
    let place = "mid_block.attentions.0.to_q.weight";
    let stored = |name: &str, data_len: usize| {
        let header = format!(
            r#"{{"{name}":{{"dtype":"F16","shape":[2,2,1,1],"data_offsets":[0,{data_len}]}}}}"#
        );
        read_all(file(&header, &[0; 8]), &Limits::default()).unwrap()
    };
    let old = stored("mid_block.attentions.0.query.weight", 8);
    let expected = [(place.to_owned(), vec![2, 2])];
    let report = plan(&expected, &old, &rename_deprecated_attention);
    assert_eq!(report.applied, [place]);
    assert_eq!(
        report.source(place),
        Some("mid_block.attentions.0.query.weight")
    );
    let wider = [(place.to_owned(), vec![2, 4])];
    assert_eq!(
        plan(&wider, &old, &rename_deprecated_attention)
            .mis_shaped
            .len(),
        1
    );
    let other = [("conv_shortcut.weight".to_owned(), vec![2, 2])];
    let report = plan(
        &other,
        &stored("conv_shortcut.weight", 8),
        &rename_deprecated_attention,
    );
    assert_eq!(report.mis_shaped.len(), 1);
}

#[test]
fn old_and_new_name_of_one_place_is_one_too_many() {
    let header = r#"{"m.attentions.0.key.bias":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},"m.attentions.0.to_k.bias":{"dtype":"F16","shape":[1],"data_offsets":[2,4]}}"#;
    let weights = read_all(file(header, &[0; 4]), &Limits::default()).unwrap();
    let expected = [("m.attentions.0.to_k.bias".to_owned(), vec![1])];
    let report = plan(&expected, &weights, &rename_deprecated_attention);
    assert_eq!((report.applied.len(), report.unexpected.len()), (1, 1));
    assert!(report.into_result(Path::new("x")).is_err());
}

#[test]
fn nan_weights_load_and_are_refused_by_the_check() {
    let data: Vec<u8> = [1.0, f32::NAN, f32::NAN, f32::INFINITY]
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    let header = r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#;
    let weights = read_all(file(header, &data), &Limits::default()).unwrap();
    let error = weights.check_finite().unwrap_err();
    let counted = matches!(&error, CheckpointError::NonFinite { tensor, nan: 2, infinite: 1, .. } if tensor == "a");
    assert!(counted, "{error}");
}

#[test]
fn every_float_type_is_widened() {
    let mut data = 0.1_f64.to_le_bytes().to_vec();
    data.extend(0xc000_u16.to_le_bytes()); // -2 in half precision
    data.extend(0x3fc0_u16.to_le_bytes()); // 1.5 in bfloat16
    data.extend(7_i32.to_le_bytes());
    let header = r#"{"d":{"dtype":"F64","shape":[1],"data_offsets":[0,8]},"h":{"dtype":"F16","shape":[1],"data_offsets":[8,10]},"b":{"dtype":"BF16","shape":[1],"data_offsets":[10,12]},"i":{"dtype":"I32","shape":[1],"data_offsets":[12,16]}}"#;
    let weights = read_all(file(header, &data), &Limits::default()).unwrap();
    assert_eq!(weights.read_f32("d").unwrap(), [0.1_f32]);
    assert_eq!(weights.read_f32("h").unwrap(), [-2.0]);
    assert_eq!(weights.read_f32("b").unwrap(), [1.5]);
    assert!(matches!(
        weights.read_f32("i"),
        Err(CheckpointError::NotFloat { .. })
    ));
}

#[test]
fn hostile_json_is_refused() {
    let limits = Limits::default();
    let parse = |text: &str| {
        let (result, peak) =
            peak(|| parse_json(Path::new("config.json"), text.as_bytes(), &limits));
        // A million values is the most that is built, whatever the file says.
        assert!(peak < 100 << 20, "{peak}");
        result
    };
    assert!(parse(r#"{"a": [1, {"b": null, "c": -1.5e3}], "d": "x"}"#).is_ok());
    for text in [
        r#"{"a": 1, "a": 2}"#,
        r#"{"a": {"b": 1, "\u0062": 2}}"#,
        r#"{"a": NaN}"#,
        r#"{"a": 1} {"#,
        r#"{"a": 1e999}"#,
        "[]",
        "",
        &"[".repeat(100_000),
        &format!(r#"{{"a": [{}0]}}"#, "0,".repeat(2_000_000)),
        &format!(r#"{{"a": "{}"}}"#, "x".repeat(17 << 20)),
    ] {
        assert!(parse(text).is_err(), "{}", &text[..text.len().min(40)]);
    }
}

#[test]
fn an_index_cannot_lead_out_of_its_directory() {
    let (path, limits) = (Path::new("model.safetensors.index.json"), Limits::default());
    let parse = |shard: &str| {
        let text = serde_json::json!({ "weight_map": { "a": shard } }).to_string();
        ShardIndex::parse(path, text.as_bytes(), &limits)
    };
    assert_eq!(
        parse("m-00001-of-00001.safetensors")
            .unwrap()
            .shards()
            .len(),
        1
    );
    for shard in [
        "../m.safetensors",
        "/etc/m.safetensors",
        "sub/m.safetensors",
        "..\\m.safetensors",
        "C:m.safetensors",
        "./m.safetensors",
        "m.safetensors/",
        "m.safetensors/.",
        "m\u{1b}.safetensors",
        "model.safetensors.index.json",
        "m.bin",
        "..",
        "",
    ] {
        let result = parse(shard);
        assert!(
            matches!(result, Err(CheckpointError::ShardName { .. })),
            "{shard}: {result:?}"
        );
    }
    for text in [
        r#"{"weight_map": {}}"#,
        r#"{"weight_map": {"a": 1}}"#,
        r#"{"weight_map": []}"#,
        "{}",
    ] {
        assert!(
            ShardIndex::parse(path, text.as_bytes(), &limits).is_err(),
            "{text}"
        );
    }
    let shards: serde_json::Map<_, _> = (0..9)
        .map(|i| (format!("t{i}"), format!("m{i}.safetensors").into()))
        .collect();
    let text = serde_json::json!({ "weight_map": shards }).to_string();
    let few = Limits {
        shards: 8,
        ..Limits::default()
    };
    let error = ShardIndex::parse(path, text.as_bytes(), &few).unwrap_err();
    assert!(
        matches!(
            error,
            CheckpointError::TooLarge {
                option: "shards",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_model_index_cannot_name_a_component_outside() {
    let parse = |text: &str| {
        PipelineIndex::parse(
            Path::new("model_index.json"),
            text.as_bytes(),
            &Limits::default(),
        )
    };
    let sound = parse(
        r#"{"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"], "vae": [null, null], "flag": true}"#,
    )
    .unwrap();
    assert_eq!(sound.components.len(), 1);
    assert_eq!(
        parse(r#"{"_class_name": ["pipeline", "Own"]}"#)
            .unwrap()
            .class_name,
        "Own"
    );
    for text in [
        r#"{"_class_name": "P", "../unet": ["diffusers", "UNet2DModel"]}"#,
        r#"{"_class_name": "P", "": ["diffusers", "UNet2DModel"]}"#,
        r#"{"_class_name": "P\u001b[2J"}"#,
        r#"{"unet": ["diffusers", "UNet2DModel"]}"#,
        r#"{"_class_name": 3}"#,
    ] {
        assert!(parse(text).is_err(), "{text}");
    }
}
