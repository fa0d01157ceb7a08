"""How the HTML report looks: a paper's appendix, on a phone, a desktop, in the dark and printed."""

CSS = """
:root{color-scheme:light dark;--page:#fff;--ink:#1c1d20;--muted:#5a5f68;--rule:#d8dade;
--tint:#f4f5f7;--link:#0b5cad}
@media screen and (prefers-color-scheme:dark){:root{--page:#16181b;--ink:#e3e5e8;--muted:#a2a8b1;
--rule:#363a41;--tint:#1f2226;--link:#83bbf2}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0 auto;max-width:76rem;padding:1.5rem 1rem 4rem;background:var(--page);color:var(--ink);
font:1rem/1.5 Charter,"Bitstream Charter","Source Serif 4",Georgia,serif;
font-variant-numeric:lining-nums;overflow-wrap:anywhere}
h1,h2,h3,h4{line-height:1.25;font-weight:600;text-wrap:balance}
h1{font-size:1.65rem;margin:0 0 .5rem}
h2{font-size:1.3rem;margin:3rem 0 .75rem;padding-top:.75rem;border-top:1px solid var(--rule)}
h3{font-size:1.05rem;margin:1.75rem 0 .4rem}
p{margin:.5rem 0;max-width:46rem}
a{color:var(--link);text-decoration-thickness:1px;text-underline-offset:.15em}
nav ul{list-style:none;margin:1rem 0 0;padding:0;display:flex;flex-wrap:wrap;gap:.25rem 1.25rem}
nav a{display:inline-block;padding:.2rem 0}
.note{color:var(--muted);font-style:italic}
figure{margin:1.5rem 0 2rem}
h3+figure{margin-top:.4rem}
figcaption{max-width:46rem;margin:0 0 .5rem;color:var(--muted);font-size:.95rem;line-height:1.4}
figcaption b{color:var(--ink);font-weight:600}
.scroll{overflow-x:auto;max-width:100%}
.scroll:focus-visible{outline:2px solid var(--link);outline-offset:2px}
table{border-collapse:collapse;font:.875rem/1.35 system-ui,"Segoe UI",Roboto,Helvetica,Arial,
sans-serif;font-variant-numeric:tabular-nums lining-nums;border-top:2px solid var(--ink);
border-bottom:2px solid var(--ink);overflow-wrap:normal}
th,td{padding:.3rem .7rem;text-align:right;vertical-align:baseline}
th{font-weight:400}
thead th{vertical-align:bottom}
thead th[colspan]{text-align:center;padding-bottom:.1rem;color:var(--muted)}
thead th[colspan]>span{display:block;border-bottom:1px solid var(--rule)}
thead tr:last-child th{border-bottom:1px solid var(--ink)}
tbody+tbody tr:first-child>*{border-top:1px solid var(--rule)}
th:first-child,.words td,.words th{text-align:left}
.numbers tr>:first-child{position:sticky;left:0;background:var(--page);min-width:7rem}
.numbers tbody th{overflow-wrap:break-word}
.numbers td{white-space:nowrap}
.words tbody th{min-width:7rem;max-width:20rem;overflow-wrap:anywhere}
.words td{min-width:6rem;max-width:34rem;overflow-wrap:anywhere}
tbody tr>.title{position:static;text-align:left;font-weight:600;padding-top:.6rem}
.title span{position:sticky;left:.7rem;display:inline-block;max-width:min(78vw,46rem);
overflow-wrap:anywhere}
.mean{background:var(--tint)}
td b{font-weight:700}
td small{display:block;font-size:.875rem;color:var(--muted)}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,19.5rem),1fr));
gap:1rem 1.5rem;align-items:start}
.grid svg{display:block;width:100%;max-width:24rem;height:auto;overflow:visible}
.grid svg text{font-family:system-ui,"Segoe UI",Roboto,Helvetica,Arial,sans-serif!important}
.one{display:inline-block;vertical-align:top;width:min(100%,19.5rem);margin-right:1.5rem}
.cards{list-style:none;margin:.5rem 0 2rem;padding:0;display:grid;gap:1.25rem 1.5rem;
grid-template-columns:repeat(auto-fill,minmax(min(100%,19.5rem),1fr))}
.cards li{display:flex;gap:.75rem;min-width:0;font:.875rem/1.35 system-ui,"Segoe UI",Roboto,
Helvetica,Arial,sans-serif;font-variant-numeric:tabular-nums;break-inside:avoid}
.cards li>div{min-width:0}
.cards img{display:block;image-rendering:pixelated}
.cards .seen{width:6rem;height:6rem;flex:none}
.picture{display:block;max-width:100%;height:auto}
.near{display:flex;flex-wrap:wrap;gap:.25rem .5rem;margin-top:.35rem}
.near span{width:3rem;text-align:center;color:var(--muted)}
.near img{width:3rem;height:3rem}
.name{color:var(--muted)}
@page{margin:12mm}
@media print{body{max-width:none;padding:0;font-size:10pt}nav{display:none}h2{break-after:avoid}
h3,figcaption{break-after:avoid}.scroll{overflow:visible}table{font-size:7.5pt}
th,td{padding:.15rem .35rem}td small{font-size:6.5pt}tr,svg{break-inside:avoid}
tr:has(.title){break-after:avoid}
.numbers tr>:first-child{position:static;min-width:0}
.words td,.words tbody th{min-width:0}
.grid{grid-template-columns:repeat(3,1fr)}.cards{grid-template-columns:repeat(2,1fr)}}
"""
