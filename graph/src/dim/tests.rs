use super::*;

fn n() -> Dim {
    Dim::symbol("N")
}
fn k(n: i64) -> Dim {
    Dim::from(n)
}

#[test]
fn equal_expressions_compare_equal() {
    assert_eq!(&(&k(2) * &(&n() + &k(1))) - &k(2), &k(2) * &n());
    assert_eq!((&n() - &n()).known(), Some(0));
    assert_ne!(Dim::unknown(), Dim::unknown());
}

#[test]
fn floor_division_extracts_multiples() {
    let x = &(&k(4) * &n()) + &k(7);
    assert_eq!(x.floor_div(&k(4)), &n() + &k(1));
    assert_eq!(n().ceil_div(&k(2)).to_string(), "floor((N+1)/(2))");
    assert_eq!((&n() * &k(12)).exact_div(&(&n() * &k(3))), Some(k(4)));
    assert_eq!(n().exact_div(&k(2)), None);
    let halved = |x: &Dim| (x + &k(1)).floor_div(&k(2));
    assert_eq!(halved(&halved(&n())).to_string(), "floor((N+3)/(4))");
    let odd = n().ceil_div(&k(2));
    assert_eq!(odd.eval(&|_| Some(7)), Some(4));
    assert!(k(1).floor_div(&k(0)).is_unknown());
}

#[test]
fn overflow_becomes_unknown() {
    assert!((&k(i64::MAX) + &k(1)).is_unknown());
    assert!((&k(i64::MAX) * &n()).eval(&|_| Some(2)).is_none());
}

#[test]
fn large_expressions_become_unknown() {
    let mut x = &n() + &k(1);
    for _ in 0..200 {
        x = (&x * &x).floor_div(&k(3)).maximum(&(&x + &n()));
        assert!(x.atoms() <= MAX_ATOMS);
    }
    assert!(!(&Dim::integer() + &n()).is_of_sizes() && (&Dim::unknown() + &n()).is_of_sizes());
}

#[test]
fn simplifies_extrema_of_comparable_expressions() {
    let m = &n() + &k(1);
    assert_eq!(n().maximum(&m), m);
    assert_eq!(n().minimum(&m), n());
    assert_eq!(n().maximum(&k(3)), k(3).maximum(&n()));
    assert!(m.at_least(2) && !n().at_least(2));
    assert!((&(&n() - &k(1)).floor_div(&k(2)) + &k(1)).at_least(1));
    assert!(Dim::unknown().at_least(0) && !(&k(0) - &n()).at_least(-5) && !Dim::integer().at_least(-5));
}
